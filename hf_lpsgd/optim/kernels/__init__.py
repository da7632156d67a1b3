"""What computes a step: torch's own operations, the compiled CPU kernel, the Triton kernel, and the choice of one.

All of them keep one contract:

- They update parameters and momentum buffers in place; LPSGD has no buffers.
- The tensors of one call lie on one device. They have the same dtypes: one for all parameters, one for all gradients
  and one for all buffers.
- The arithmetic is in float32 (in float64 for float64 parameters), whatever the dtypes. A result is rounded once,
  when it is written: to the nearest, or by the random numbers of `rounding.py`, the same in all of them.
- What a call allocates stays below a constant, but for the tables of the CUDA kernel: 4 bytes per 1,024 elements.
- No kernel knows of another. `choice.py` chooses one, and `self_check.py` compares a fused kernel with torch's own
  operations before its first use.

`torch_ops` updates any tensors. A fused kernel updates dense tensors whose rows share one memory order, and has the
interface of `FusedKernel` in `choice.py`.
"""
