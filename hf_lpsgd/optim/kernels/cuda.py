"""The fused step on CUDA: one launch of a Triton kernel updates all tensors whose addresses are in a table."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from functools import cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from .hyperparameters import NUMBERS, Hyperparameters
from .rounding import FLOAT8, signed
from .tensors import Tensors

# Elements that one program of the kernel updates, and its warps. Each thread has 8 elements of each tensor in flight,
# and few enough registers (40 on compute capability 9.0) for 12 programs at a time on a multiprocessor.
BLOCK = 1024
NUM_WARPS = 4

_reasons: dict[torch.device, str | None] = {}


def why_unavailable(device: torch.device) -> str | None:
    if device not in _reasons:
        if torch.cuda.is_current_stream_capturing():
            return "the kernel cannot be tried while a CUDA graph is captured: make one step before the capture"
        try:
            _reasons[device] = _find_reason(device)
        except torch.OutOfMemoryError:  # not kept: there may be memory later
            return "there is no GPU memory left to try it"
        except Exception as error:  # triton raises errors of many kinds, such as where it finds no C compiler
            said = str(error).strip().split("\n")[-1]
            _reasons[device] = f"triton cannot run a kernel here ({type(error).__name__}: {said})"
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
    if major < 7:
        return f"triton needs a GPU of compute capability 7.0 or higher, and this one has {major}.{minor}"
    probe = torch.zeros(1, dtype=torch.float32, device=device)
    step(Tensors([probe], [probe.clone()], None, [0]), Hyperparameters(0.0))
    return None


@cache
def supports(device: torch.device, *dtypes: torch.dtype | None) -> bool:
    # Older versions of triton cannot compile bfloat16 for older GPUs.
    if torch.bfloat16 in dtypes and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return False
    supported = {None, torch.float32, torch.bfloat16, torch.float16}
    return {*dtypes[:2]} <= supported and {*dtypes[2:]} <= {*supported, FLOAT8}


def step(tensors: Tensors, hyper: Hyperparameters) -> bool:
    """Update dense tensors in place, as the contract of [`hf_lpsgd.optim.kernels`][] says.

    It does not wait for the device. New values of `lr` or `rho`, or new addresses, compile nothing. A captured CUDA
    graph keeps the hyperparameters of its capture, except a learning rate that is a tensor on the device. In a capture
    no table can be copied, so the result is False if no step with the same addresses was made before.
    """
    from . import triton_kernel as kernel

    device = tensors.params[0].device
    # For an int or a NumPy number triton would compile again, or fail.
    numbers = {name: float(getattr(hyper, name)) for name in NUMBERS}
    squares, key = hyper.squares, hyper.rounding
    lr = hyper.lr if isinstance(hyper.lr, Tensor) and hyper.lr.device == device else float(hyper.lr)
    sizes = tuple(map(Tensor.numel, tensors.params))
    addresses = [tuple(map(Tensor.data_ptr, column)) for column in tensors.columns]
    addresses += [(0,) * len(sizes)] * (3 - len(addresses))
    # The device is the CPU where triton interprets the kernel.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        tensor_of_block = _uploads.get(_tensor_of_block, sizes, device)
        table = _uploads.get(_table, (*addresses, sizes, tuple(tensors.numbers)), device)
        if tensor_of_block is None or table is None:
            return False
        measured = table if squares is None else torch.empty(len(tensor_of_block), dtype=torch.float32, device=device)
        dtypes = [kernel.DTYPES[dtype] for dtype in tensors.dtypes]
        flags = (isinstance(lr, Tensor), squares is not None, key is not None)
        pointers = (table, tensor_of_block, measured, *map(signed, key or (0, 0)), lr)
        launch = kernel.lp_step[(len(tensor_of_block),)]
        launch(*pointers, *dtypes, *flags, **numbers, BLOCK=BLOCK, num_warps=NUM_WARPS)
        if squares is not None:
            squares.add(measured.double().sum(), sum(sizes))
    return True


def _tensor_of_block(sizes: tuple[int, ...]) -> Tensor:
    blocks = (torch.tensor(sizes, device="cpu") + BLOCK - 1) // BLOCK
    return torch.repeat_interleave(torch.arange(len(sizes), dtype=torch.int32, device="cpu"), blocks)


def _table(rows: tuple[tuple[int, ...], ...]) -> Tensor:
    *addresses, sizes, numbers = torch.tensor(rows, device="cpu")
    blocks = (sizes + BLOCK - 1) // BLOCK
    are_aligned = (torch.stack(addresses) % 16 == 0).all(0)
    return torch.stack([*addresses, sizes, blocks.cumsum(0) - blocks, are_aligned.long(), numbers], 1)


class _Uploads:
    """Integers copied to CUDA devices, to be read on any stream there: the most recent ones, at most 32 MiB."""

    most_bytes = 2**25
    least_bytes = 2**13  # that one counts, so that there are at most 4,096: layerwise each has one gradient's address

    def __init__(self) -> None:
        self.lock = Lock()
        self.latest: OrderedDict[Hashable, tuple[Tensor, torch.cuda.Stream, torch.cuda.Event]] = OrderedDict()
        self.bytes = 0
        self.of_graphs: set[Tensor] = set()  # captured CUDA graphs read these at each replay, so they are kept forever

    def get(self, build: Callable[[Any], Tensor], given: Hashable, device: torch.device) -> Tensor | None:
        """Return `build(given)` on `device`, copied there now or earlier; None where a capture prevents the copy."""
        if device.type != "cuda":
            return build(given)
        capturing, stream = torch.cuda.is_current_stream_capturing(), torch.cuda.current_stream(device)
        key = (device, build, given)
        with self.lock:
            upload = self.latest.get(key)
            if upload is not None:
                self.latest.move_to_end(key)
            elif capturing:
                return None  # a capture of a CUDA graph cannot allocate host memory
            else:
                values = build(given).pin_memory().to(device, non_blocking=True)
                upload = self.latest[key] = (values, stream, stream.record_event())
                self.bytes += max(values.nbytes, self.least_bytes)
                while self.bytes > self.most_bytes and len(self.latest) > 2:
                    _, (oldest, *_) = self.latest.popitem(last=False)
                    self.bytes -= max(oldest.nbytes, self.least_bytes)
            values, copied_on, copied = upload
            if capturing:
                self.of_graphs.add(values)
        # torch synchronizes the device before a capture, and a capture cannot wait for an event from before it.
        if stream != copied_on and not capturing:
            stream.wait_event(copied)
            values.record_stream(stream)
        return values


_uploads = _Uploads()
