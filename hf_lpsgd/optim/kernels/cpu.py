"""The fused step on the CPU: one pass over memory, by cpu_kernel.cpp, which pip compiles if there is a compiler."""

import ctypes
import os
import struct
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .hyperparameters import NUMBERS, Hyperparameters
from .rounding import FLOAT8, key_of_parameter
from .tensors import Tensors

_INTERFACE = 900 + len(NUMBERS)
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, FLOAT8: 2}
_OPENMP = ("GOMP_parallel", "omp_get_num_threads", "omp_get_thread_num")
_INSTALL = "install a C++ compiler (apt install g++), then in a clone: pip install --force-reinstall --no-deps ."

# In a forked child OpenMP would wait forever for the threads of the parent, so a child uses one thread.
_in_forked_child: list[bool] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _in_forked_child.append(True))


@cache
def _library() -> ctypes.CDLL | str:
    """The compiled library, or why there is none."""
    compiled = Path(__file__).with_name("_cpu_kernel.so")
    if not compiled.exists():
        return f"hf_lpsgd was installed without its compiled CPU step: {_INSTALL}"
    try:
        if _is_cut_short(compiled.read_bytes()):
            raise OSError("the file is cut short")
        library = ctypes.CDLL(str(compiled))
        interface = library.hf_lpsgd_interface()
    except (OSError, AttributeError) as error:
        return f"the compiled CPU step of hf_lpsgd cannot be loaded ({error}): {_INSTALL}"
    if interface != _INTERFACE:
        return "the compiled CPU step of hf_lpsgd is that of another version: install hf_lpsgd again"
    # OpenMP is not loaded here: another library than torch's would bring a second set of threads.
    for name in ("libgomp.so.1", None):
        with suppress(OSError, AttributeError):
            openmp = ctypes.CDLL(name, os.RTLD_NOLOAD | os.RTLD_LAZY)
            library.hf_lpsgd_use_openmp(*[getattr(openmp, function) for function in _OPENMP])
    library.hf_lpsgd_instructions.restype = ctypes.c_char_p
    library.hf_lpsgd_step.restype = None
    library.hf_lpsgd_step.argtypes = [ctypes.c_int64, *[ctypes.c_void_p] * 7, ctypes.c_int32, ctypes.c_void_p]
    return library


def _is_cut_short(file: bytes) -> bool:
    """Say whether an ELF file lacks its last header, which ends it: to load what is not there ends the process."""
    start, size, count = struct.unpack_from("40xQ10xHH", file.ljust(64, b"\0"))
    end = start + size * count
    return file[:5] == b"\x7fELF\2" and (len(file) < end or not any(file[end - size : end]))


def why_unavailable(device: torch.device) -> str | None:
    library = _library()
    return library if isinstance(library, str) else None


def instructions() -> str | None:
    """Return the instruction set that the fused step uses here: AVX512, AVX2 or DEFAULT; None if there is none."""
    library = _library()
    return None if isinstance(library, str) else library.hf_lpsgd_instructions().decode()


def threads() -> int:
    """Return how many threads a step on large tensors uses here; 1 where torch has loaded no OpenMP library."""
    library = _library()
    return 1 if isinstance(library, str) else library.hf_lpsgd_threads(_most_threads())


def _most_threads() -> int:
    return 1 if _in_forked_child else torch.get_num_threads()


def supports(device: torch.device, *dtypes: torch.dtype | None) -> bool:
    return {*dtypes} <= {None, *_DTYPES} and FLOAT8 not in dtypes[:2]


def step(tensors: Tensors, hyper: Hyperparameters) -> bool:
    """Update dense tensors in place, as the contract of [`hf_lpsgd.optim.kernels`][] says; always True."""
    library = _library()
    assert isinstance(library, ctypes.CDLL)
    columns = tensors.columns
    integers = ctypes.c_int64 * len(tensors.params)
    sizes = integers(*map(Tensor.numel, tensors.params))
    key, squares = hyper.rounding, hyper.squares
    words = () if key is None else [word for number in tensors.numbers for word in key_of_parameter(key, number)]
    lr = float(hyper.lr)
    options = (lr * hyper.lr_scale, 1.0 - lr * hyper.weight_decay, *[getattr(hyper, name) for name in NUMBERS])
    measured = ctypes.c_double()
    library.hf_lpsgd_step(
        len(tensors.params),
        *[integers(*map(Tensor.data_ptr, column)) for column in columns],
        *[None] * (3 - len(columns)),
        sizes,
        (ctypes.c_int32 * len(columns))(*[_DTYPES[column[0].dtype] for column in columns]),
        (ctypes.c_uint32 * len(words))(*words) if words else None,
        (ctypes.c_float * len(options))(*map(float, options)),
        _most_threads(),
        None if squares is None else ctypes.byref(measured),
    )
    if squares is not None:
        squares.add(measured.value, sum(sizes))
    return True
