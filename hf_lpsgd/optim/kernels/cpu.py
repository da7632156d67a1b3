"""The fused step on the CPU: one pass over memory, by cpu_kernel.cpp.

`pip install` compiles it where there is a C++ compiler.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .rounding import key_of_parameter
from .tensors import ParamGradBuffer, StepHyperparameters

_INTERFACE = 5
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

_INSTALL = (
    "install a C++ compiler (Debian, Ubuntu: apt install g++), then hf_lpsgd again from its source "
    "(in a clone of it: pip install --force-reinstall --no-deps .)"
)


# In a forked child OpenMP would wait forever for the threads of the parent, so a child uses one thread.
_in_forked_child: list[bool] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _in_forked_child.append(True))


_OPENMP = ("GOMP_parallel", "omp_get_num_threads", "omp_get_thread_num")


def _openmp() -> list[ctypes.c_void_p] | None:
    """The addresses of `_OPENMP` in the library that torch has loaded; None where it has loaded none with these names.

    None is loaded here: a second library would bring a second set of threads.
    """
    if_loaded = getattr(os, "RTLD_NOLOAD", 0) | os.RTLD_LAZY
    for name_of_library in (None, "libgomp.so.1") if hasattr(os, "RTLD_NOLOAD") else (None,):
        try:
            library = ctypes.CDLL(name_of_library, if_loaded)
            return [ctypes.cast(getattr(library, name), ctypes.c_void_p) for name in _OPENMP]
        except (OSError, AttributeError):
            continue
    return None


@cache
def _library() -> ctypes.CDLL | str:
    """The compiled library, or why there is none."""
    compiled = Path(__file__).with_name("_cpu_kernel.so")
    if not compiled.exists():
        return f"hf_lpsgd was installed without its compiled CPU step: {_INSTALL}"
    try:
        library = ctypes.CDLL(str(compiled))
        interface = library.hf_lpsgd_interface()
    except (OSError, AttributeError) as error:
        return f"the compiled CPU step of hf_lpsgd cannot be loaded ({error}): {_INSTALL}"
    if interface != _INTERFACE:
        return "the compiled CPU step of hf_lpsgd is that of another version: install hf_lpsgd again"
    if functions := _openmp():
        library.hf_lpsgd_use_openmp(*functions)
    library.hf_lpsgd_instructions.restype = ctypes.c_char_p
    library.hf_lpsgd_step.restype = None
    library.hf_lpsgd_step.argtypes = (
        [ctypes.c_int64] + [ctypes.c_void_p] * 6 + [ctypes.c_float] * 6 + [ctypes.c_int32] * 2 + [ctypes.c_void_p]
    )
    return library


def why_unavailable(device: torch.device) -> str | None:
    """Why the fused step cannot be used on the CPU here, and what to do; None if it can."""
    library = _library()
    return library if isinstance(library, str) else None


def instructions() -> str | None:
    """The instruction set of this CPU that the fused step uses: AVX512, AVX2 or DEFAULT; None if there is none."""
    library = _library()
    return None if isinstance(library, str) else library.hf_lpsgd_instructions().decode()


def threads() -> int:
    """How many threads a step on large tensors uses here; 1 where torch has loaded no OpenMP library."""
    library = _library()
    return 1 if isinstance(library, str) else library.hf_lpsgd_threads(_most_threads())


def _most_threads() -> int:
    return 1 if _in_forked_child else torch.get_num_threads()


def supports(device: torch.device, *dtypes: torch.dtype | None) -> bool:
    """Whether a parameter, gradient and momentum buffer (or None) of these dtypes can be updated."""
    return all(dtype is None or dtype in _DTYPES for dtype in dtypes)


def step(triples: list[ParamGradBuffer], hyper: StepHyperparameters) -> bool:
    """Update dense tensors in place, as the contract of [`hf_lpsgd.optim.kernels`][] says; always True."""
    library = _library()
    assert isinstance(library, ctypes.CDLL)
    lr, momentum, rho, eps, weight_decay, maximize, lr_scale, bound, squares, rounding = hyper
    lr = float(lr)
    params, grads, buffers, numbers = zip(*triples, strict=True)
    addresses = ctypes.c_int64 * len(triples)
    has_buffers = buffers[0] is not None
    dtypes = [_DTYPES[t.dtype] for t in triples[0][:3] if t is not None]
    words = () if rounding is None else [word for number in numbers for word in key_of_parameter(rounding, number)]
    measured = None if squares is None else ctypes.c_double()
    library.hf_lpsgd_step(
        len(triples),
        addresses(*map(Tensor.data_ptr, params)),
        addresses(*map(Tensor.data_ptr, grads)),
        addresses(*map(Tensor.data_ptr, buffers)) if has_buffers else None,
        addresses(*map(Tensor.numel, params)),
        (ctypes.c_int32 * len(dtypes))(*dtypes),
        (ctypes.c_uint32 * len(words))(*words) if words else None,
        lr * lr_scale,
        1 - lr * weight_decay,
        1 - momentum,
        rho,
        eps,
        bound,
        maximize,
        _most_threads(),
        None if measured is None else ctypes.byref(measured),
    )
    if squares is not None and measured is not None:
        squares.add(measured.value, sum(map(Tensor.numel, params)))
    return True
