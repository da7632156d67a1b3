"""The fused step on CUDA: one launch of a Triton kernel updates all tensors of a param group.

The kernel reads the addresses of the tensors from a table on the device. A table is kept, and used again while the
addresses stay the same. A new table is copied to the device without waiting for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from functools import cache
from threading import Lock

import torch
from torch import Tensor

from .hyperparameters import NUMBERS, Hyperparameters
from .tensors import Tensors

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_reasons: dict[torch.device, str | None] = {}


def why_unavailable(device: torch.device) -> str | None:
    """Say why the fused step cannot be used on this device, and what to do; None if it can."""
    if device not in _reasons:
        if torch.cuda.is_current_stream_capturing():
            return "the kernel cannot be tried while a CUDA graph is captured: make one step before the capture"
        try:
            _reasons[device] = _find_reason(device)
        except torch.OutOfMemoryError:  # not kept: there may be memory later
            return "there is no GPU memory left to try it"
    return _reasons[device]


def _find_reason(device: torch.device) -> str | None:
    try:
        import triton

        from .triton_kernel import lp_step
    except ImportError:
        return "triton is not installed: pip install triton (builds of torch for CUDA on Linux bring it)"
    if not isinstance(lp_step, triton.runtime.JITFunction):
        return "triton interprets kernels on the CPU: unset TRITON_INTERPRET"
    major, minor = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and major < 7:
        return f"triton needs a GPU of compute capability 7.0 or higher, and this one has {major}.{minor}"
    probe = torch.zeros(1, device=device)
    try:
        step(Tensors([probe], [probe.clone()], None, [0]), Hyperparameters(0.0))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # triton raises errors of many kinds, such as where it finds no C compiler
        said = str(error).strip().splitlines() or [""]
        return f"triton cannot run a kernel here ({type(error).__name__}: {said[-1]})"
    return None


@cache
def supports(device: torch.device, *dtypes: torch.dtype | None) -> bool:
    """Say whether a parameter, gradient and momentum buffer (or None) of these dtypes can be updated there."""
    if any(dtype not in (None, *_DTYPES) for dtype in dtypes):
        return False
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    if torch.bfloat16 in dtypes and is_nvidia:  # older versions of triton cannot compile it for older GPUs
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return True


def step(tensors: Tensors, hyper: Hyperparameters) -> bool:
    """Update dense tensors in place, as the contract of [`hf_lpsgd.optim.kernels`][] says.

    The step does not wait for the device. New values of `lr` or `rho`, or new addresses, compile nothing.

    A captured CUDA graph keeps the hyperparameters of its capture, except a learning rate that is a tensor on the
    device. A table cannot be copied during a capture. So a step can be captured only if a step with the same addresses
    was made before; otherwise the result is False.
    """
    from . import triton_kernel as kernel

    device = tensors.params[0].device
    # For an int or a NumPy number triton would compile again, or fail.
    numbers = {name: float(getattr(hyper, name)) for name in NUMBERS}
    lr = hyper.lr if isinstance(hyper.lr, Tensor) and hyper.lr.device == device else float(hyper.lr)
    sizes = tuple(param.numel() for param in tensors.params)
    columns = [tensors.params, tensors.grads, tensors.buffers]
    addresses = [(0,) * len(sizes) if column is None else tuple(map(Tensor.data_ptr, column)) for column in columns]
    # The device is the CPU where triton interprets the kernel.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        tensor_of_block = _on_device((sizes, device), lambda: _tensor_of_block(sizes, kernel.BLOCK), device)
        rows = (*addresses, sizes, tuple(tensors.numbers))
        table = _on_device((*rows, device), lambda: _table(rows, kernel.BLOCK), device)
        if tensor_of_block is None or table is None:
            return False
        measured = None if hyper.squares is None else torch.empty(len(tensor_of_block), device=device)
        dtypes = [None if dtype is None else kernel.DTYPES[dtype] for dtype in tensors.dtypes]
        kernel.lp_step[(len(tensor_of_block),)](
            table,
            tensor_of_block,
            table if measured is None else measured,
            *(key - (key >> 31 << 32) for key in hyper.rounding or (0, 0)),
            lr,
            **numbers,
            PARAM_DTYPE=dtypes[0],
            GRAD_DTYPE=dtypes[1],
            BUFFER_DTYPE=dtypes[2],
            LR_IS_TENSOR=isinstance(lr, Tensor),
            MEASURE=measured is not None,
            STOCHASTIC=hyper.rounding is not None,
            BLOCK=kernel.BLOCK,
            num_warps=kernel.NUM_WARPS,
        )
        if hyper.squares is not None and measured is not None:
            hyper.squares.add(measured.double().sum(), sum(sizes))
    return True


def _tensor_of_block(sizes: tuple[int, ...], block: int) -> Tensor:
    counts = torch.tensor([-(-size // block) for size in sizes], device="cpu")
    return torch.repeat_interleave(torch.arange(len(sizes), dtype=torch.int32, device="cpu"), counts)


def _table(rows: tuple[tuple[int, ...], ...], block: int) -> Tensor:
    table, first_block = [], 0
    for *addresses, size, number in zip(*rows, strict=True):
        are_aligned = all(address % 16 == 0 for address in addresses)
        table.append([*addresses, size, first_block, int(are_aligned), number])
        first_block += -(-size // block)
    return torch.tensor(table, device="cpu")


class _Upload:
    """Integers copied to a CUDA device, to be read on any stream of it."""

    def __init__(self, values: Tensor, device: torch.device) -> None:
        self.stream = torch.cuda.current_stream(device)
        self.tensor = values.pin_memory().to(device, non_blocking=True)
        self.copied = self.stream.record_event()
        self.bytes = values.nbytes

    def read_on(self, stream: torch.cuda.Stream, capturing: bool) -> Tensor:
        # torch synchronizes the device before a capture, and a capture cannot wait for an event from before it.
        if stream != self.stream and not capturing:
            stream.wait_event(self.copied)
            self.tensor.record_stream(stream)
        return self.tensor


class _Uploads:
    """The most recent uploads, at most 32 MiB of them."""

    most_bytes = 2**25
    least_bytes = 2**13  # that one counts, so that there are at most 4,096: layerwise each has one gradient's address

    def __init__(self) -> None:
        self.lock = Lock()
        self.latest: OrderedDict[Hashable, _Upload] = OrderedDict()
        self.bytes = 0
        # Captured CUDA graphs read these whenever they are replayed, so they are kept forever.
        self.of_graphs: set[_Upload] = set()

    def get(self, key: Hashable, build: Callable[[], Tensor], device: torch.device, capturing: bool) -> _Upload | None:
        with self.lock:
            upload = self.latest.get(key)
            if upload is not None:
                self.latest.move_to_end(key)
                if capturing:
                    self.of_graphs.add(upload)
            elif not capturing:
                upload = self.latest[key] = _Upload(build(), device)
                self.bytes += max(upload.bytes, self.least_bytes)
                while self.bytes > self.most_bytes and len(self.latest) > 2:
                    self.bytes -= max(self.latest.popitem(last=False)[1].bytes, self.least_bytes)
            return upload


_uploads = _Uploads()


def _on_device(key: Hashable, build: Callable[[], Tensor], device: torch.device) -> Tensor | None:
    """Return what `build` makes on `device`, or the copy made earlier for the same `key`.

    None where there is no earlier copy and a CUDA graph is being captured: a capture cannot allocate host memory.
    """
    if device.type != "cuda":
        return build()
    capturing = torch.cuda.is_current_stream_capturing()
    upload = _uploads.get(key, build, device, capturing)
    return None if upload is None else upload.read_on(torch.cuda.current_stream(device), capturing)
