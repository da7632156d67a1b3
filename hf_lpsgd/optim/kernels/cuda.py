"""The fused step on CUDA: one launch of a Triton kernel updates all tensors of a param group.

The kernel finds the tensors through a table of addresses on the device. Tables are kept and used again while the
addresses stay the same; a new one is copied without waiting for the device.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from functools import cache
from threading import Lock

import torch
from torch import Tensor

from . import torch_ops
from .tensors import Scalars, Trio

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


_problems: dict[torch.device, str | None] = {}


def problem(device: torch.device) -> str | None:
    """Why the fused step cannot be used on this device, and what to do; None if it can."""
    if device not in _problems:
        if torch.cuda.is_current_stream_capturing():
            return "the first step cannot be one that a CUDA graph captures: make one before"
        try:
            _problems[device] = _find_problem(device)
        except torch.OutOfMemoryError:  # which need not stay so
            return "there is no GPU memory left to try it"
    return _problems[device]


def _find_problem(device: torch.device) -> str | None:
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
        step([(probe, probe.clone(), None)], Scalars(0.0, 0.0, 0.0, 0.0, 0.0, False))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # without a C compiler, among others, triton fails in ways of its own
        said = str(error).strip().splitlines() or [""]
        return f"triton cannot run a kernel here ({type(error).__name__}: {said[-1]})"
    return None


@cache
def warn_of(reason: str) -> None:
    """Say once why the default implementation is not the fastest."""
    warnings.warn(f"hf_lpsgd updates with the slower foreach implementation: {reason}", stacklevel=2)


@cache
def supports(device: torch.device, *dtypes: torch.dtype | None) -> bool:
    """Whether a parameter, gradient and momentum buffer (or None) of these dtypes can be updated on this device."""
    if any(dtype not in (None, *_DTYPES) for dtype in dtypes):
        return False
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    if torch.bfloat16 in dtypes and is_nvidia:  # older versions of triton cannot compile it for older GPUs
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return True


def step(trios: list[Trio], scalars: Scalars) -> None:
    """Update dense tensors of the same memory order, on one device and of the same dtypes, in place.

    Nothing waits for the device, and neither a new `lr` or `rho` nor new addresses compile anything anew. In a
    captured CUDA graph all numbers stay as they were captured, but a learning rate that is a tensor on the device. A
    step is captured as this one where a step with the same addresses was made before; otherwise, since a table cannot
    be copied in a capture, as the one of torch's foreach operations.

    Args:
        trios: parameters, gradients and momentum buffers (or None).
        scalars: the numbers of the step.
    """
    from . import triton_kernel as kernel

    lr, momentum, rho, eps, weight_decay, maximize = scalars
    trios = [trio for trio in trios if trio[0].numel() > 0]
    if not trios:
        return
    device = trios[0][0].device
    # Anything but a float, such as an int or a number of numpy, would have triton compile anew, or fail.
    lr = lr if isinstance(lr, Tensor) and lr.device == device else float(lr)
    sizes = tuple(param.numel() for param, _, _ in trios)
    addresses = tuple(0 if t is None else t.data_ptr() for trio in trios for t in trio)
    # It is the CPU where triton interprets the kernel.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        tensor_of_block = _on_device((sizes, device), lambda: _tensor_of_block(sizes, kernel.BLOCK), device)
        table = _on_device((addresses, sizes, device), lambda: _table(addresses, sizes, kernel.BLOCK), device)
        if tensor_of_block is None or table is None:
            torch_ops.step(trios, scalars, on_cpu=False, foreach=True)
            return
        param_dtype, grad_dtype, buffer_dtype = (None if t is None else kernel.DTYPES[t.dtype] for t in trios[0])
        kernel.lp_step[(len(tensor_of_block),)](
            table,
            tensor_of_block,
            lr,
            1 - float(momentum),
            float(rho),
            float(eps),
            float(weight_decay),
            -1.0 if maximize else 1.0,
            PARAM_DTYPE=param_dtype,
            GRAD_DTYPE=grad_dtype,
            BUFFER_DTYPE=buffer_dtype,
            LR_IS_TENSOR=isinstance(lr, Tensor),
            BLOCK=kernel.BLOCK,
            num_warps=kernel.NUM_WARPS,
        )


def _tensor_of_block(sizes: tuple[int, ...], block: int) -> Tensor:
    counts = torch.tensor([-(-size // block) for size in sizes], device="cpu")
    return torch.repeat_interleave(torch.arange(len(sizes), dtype=torch.int32, device="cpu"), counts)


def _table(addresses: tuple[int, ...], sizes: tuple[int, ...], block: int) -> Tensor:
    rows, first_block = [], 0
    for index, size in enumerate(sizes):
        trio = addresses[3 * index : 3 * index + 3]
        rows.append([*trio, size, first_block, int(all(address % 16 == 0 for address in trio))])
        first_block += -(-size // block)
    return torch.tensor(rows, device="cpu")


class _Upload:
    """Integers copied to a CUDA device, to be read on any stream of it."""

    def __init__(self, values: Tensor, device: torch.device) -> None:
        self.stream = torch.cuda.current_stream(device)
        self.tensor = values.pin_memory().to(device, non_blocking=True)
        self.copied = self.stream.record_event()
        self.bytes = values.numel() * values.element_size()

    def read_on(self, stream: torch.cuda.Stream, capturing: bool) -> Tensor:
        # Before a capture everything is synchronized, and within it there is no waiting for an event of before.
        if stream != self.stream and not capturing:
            stream.wait_event(self.copied)
            self.tensor.record_stream(stream)
        return self.tensor


class _Uploads:
    """The latest uploads, as many as fit into 32 MiB."""

    most_bytes = 2**25

    def __init__(self) -> None:
        self.lock = Lock()
        self.latest: OrderedDict[Hashable, _Upload] = OrderedDict()
        self.bytes = 0
        # What captured CUDA graphs read when they are replayed, and so must never go.
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
                self.bytes += upload.bytes
                while self.bytes > self.most_bytes and len(self.latest) > 2:
                    self.bytes -= self.latest.popitem(last=False)[1].bytes
            return upload


_uploads = _Uploads()


def _on_device(key: Hashable, build: Callable[[], Tensor], device: torch.device) -> Tensor | None:
    """What `build` makes, on `device`, made and copied only where it was not for the same `key` before.

    None where it was not and a CUDA graph is captured, in which memory of the host cannot be allocated.
    """
    if device.type != "cuda":
        return build()
    capturing = torch.cuda.is_current_stream_capturing()
    upload = _uploads.get(key, build, device, capturing)
    return None if upload is None else upload.read_on(torch.cuda.current_stream(device), capturing)
