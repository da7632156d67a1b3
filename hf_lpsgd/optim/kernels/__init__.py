"""What computes a step: torch's own operations, the compiled CPU kernel and the Triton kernel.

All of them keep one contract:

- They update in place, for each parameter, the triple (parameter, gradient, momentum buffer); LPSGD has no buffer.
- The triples of one call lie on one device. They have the same dtypes: one for all parameters, one for all gradients
  and one for all buffers.
- The arithmetic is in float32 (in float64 for float64 parameters), whatever the dtypes. A result is rounded once,
  when it is written: to the nearest, or by the random numbers of `rounding.py`, the same in all of them.
- What a call allocates stays below a constant, but for the tables of the CUDA kernel: 4 bytes per 1,024 elements.
- No kernel knows of another. [`hf_lpsgd.optim.functional`][] chooses between them, and before it first uses a fused
  kernel on a device, `self_check` compares it with torch's own operations there.

`torch_ops` updates any tensors. A fused kernel updates dense tensors whose triple shares one memory order, and has the
interface of [`FusedKernel`][hf_lpsgd.optim.kernels.FusedKernel].
"""

from __future__ import annotations

from typing import Protocol

import torch

from . import cpu, cuda, torch_ops
from .tensors import ParamGradBuffer, StepHyperparameters

__all__ = ["FUSED_KERNELS", "FusedKernel", "torch_ops"]


class FusedKernel(Protocol):
    """The interface of a fused kernel; a module can have it."""

    def why_unavailable(self, device: torch.device) -> str | None:
        """Why the kernel cannot be used on `device`, and what to do; None if it can."""

    def supports(self, device: torch.device, *dtypes: torch.dtype | None) -> bool:
        """Whether it updates a parameter, gradient and momentum buffer (None: no buffer) of these dtypes."""

    def step(self, triples: list[ParamGradBuffer], hyper: StepHyperparameters) -> bool:
        """Update all `triples` and return True, or change nothing and return False: it cannot be used just now."""


FUSED_KERNELS: dict[str, FusedKernel] = {"cpu": cpu, "cuda": cuda}
