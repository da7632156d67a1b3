"""A fused kernel proves itself before it is used on a device: against torch's own operations, on some elements."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from . import torch_ops
from .hyperparameters import Hyperparameters
from .rounding import FLOAT8, ROUNDED, key_of_step, rounded
from .tensors import Dtypes, SumOfSquares, Tensors

Step = Callable[[Tensors, Hyperparameters], bool]
_Case = tuple[tuple[int, ...], Hyperparameters]

# One element, so that one thread makes the first call of MKL's functions (see torch_ops.py). Vectors and a tail that
# begin one element into their memory; two whole blocks of the CUDA kernel and a tail. And one for several threads.
_SIZES, _LARGE = (1, 301, 2053), (70_000,)

# By how much of themselves values may differ. Those of 16 bits may differ by a unit in the last place, and seldom: the
# float32 values that are rounded differ by far less.
_RELATIVE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
_RELATIVE[FLOAT8] = 128.0  # of its bits, where the next value may be in place of one
_UNIT = 2.0**-6  # of a momentum in float8


@torch.no_grad()
def why_wrong(step: Step, device: torch.device, dtypes: Dtypes) -> str | None:
    """Say what a kernel's step computes otherwise than torch on tensors of these dtypes; None where they agree."""
    for name, case in _cases(device).items():
        expected = _results(partial(torch_ops.step, foreach=False), case, device, dtypes)
        try:
            found = _results(step, case, device, dtypes)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of whichever kind the kernel raises
            said = str(error).strip().split("\n")[-1]
            return f"{name} fails with {type(error).__name__}: {said}"
        for kind, one in found.items():
            wrong = _first_wrong(one, expected[kind])
            if wrong is not None:
                columns = zip(dtypes, ("parameters", "gradients", "momentum"), strict=True)
                words = [f"{dtype} {column}".removeprefix("torch.") for dtype, column in columns if dtype is not None]
                values = f"{kind} is {one[wrong]:.9g} and not {expected[kind][wrong]:.9g}"
                return f"in {name} with {', '.join(words)}, {values}"
    return None


def _cases(device: torch.device) -> dict[str, _Case]:
    """Return sizes of tensors and a step, for each of a kernel's branches."""
    step = Hyperparameters(0.01, grad_weight=0.1, rho=0.8, eps=1e-8, weight_decay=0.1)
    measuring = step._replace(squares=SumOfSquares())
    bounded = measuring._replace(grad_weight=0.6, rho=0.9, lr_scale=0.3, bound=0.02)
    other = step._replace(lr=torch.tensor(step.lr, device=device), grad_weight=0.6, rho=0.0)
    return {
        "a step": (_SIZES, measuring),
        "a step on a large tensor": (_LARGE, step),
        "a step with p = 2": (_SIZES, step._replace(rho=0.0, weight_decay=0.0, sign=-1.0)),
        "a step with p = 2 and little momentum": (_SIZES, other),
        "a bounded step with little momentum": (_SIZES, bounded),
        "a step with stochastic rounding": (_SIZES, measuring._replace(rounding=key_of_step(0, 1))),
    }


def _results(step: Step, case: _Case, device: torch.device, dtypes: Dtypes) -> dict[str, Tensor]:
    """Return what a step makes of the parameters, the momentum and the sum of squares."""
    sizes, hyper = case
    params, grads, *buffers = [
        [_values(size, number, kind, device, dtype) for number, size in enumerate(sizes)]
        for kind, dtype in enumerate(dtypes)
        if dtype is not None
    ]
    squares = SumOfSquares()
    if hyper.squares is not None:
        hyper = hyper._replace(squares=squares)
    if FLOAT8 in dtypes:
        hyper = hyper._replace(rounding=hyper.rounding or key_of_step(0, 2), momentum_unit=_UNIT)
    if not step(Tensors(params, grads, buffers[0] if buffers else None, range(len(sizes))), hyper):
        raise RuntimeError("it was not made")
    results = {"a parameter": torch.cat(params).cpu()}
    if buffers:
        results["a momentum"] = torch.cat(buffers[0]).cpu()
    if hyper.squares is not None:
        results["the sum of squares"] = torch.tensor([squares.total()], dtype=torch.float32, device="cpu")
    return results


def _values(size: int, number: int, kind: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return values of many sizes and both signs, the same at each call; every second address is not aligned."""
    # A gradient has the sign of its momentum: where they cancel, the least rounding makes another step.
    places = torch.arange(size, dtype=torch.float32, device=device)
    signs = 1 - 2 * (places % 3 == 0).float()
    turns = places * (1.7 + kind) + number
    values = signs * turns.sin().abs() * 10.0 ** (1.5 * turns.cos() - 1.5)
    if dtype == FLOAT8:
        values = rounded(values, 2**15, FLOAT8, _UNIT)
    shift = number % 2
    return torch.empty(size + shift, dtype=dtype, device=device)[shift:].copy_(values)


def _first_wrong(one: Tensor, other: Tensor) -> int | None:
    """Return the place of the first value that differs by more than it may, or of any if too many differ."""
    difference = (one.double() - other.double()).abs()
    too_far = ~(difference <= 1e-7 + _RELATIVE[other.dtype] * other.double().abs())
    if other.dtype in ROUNDED and int((difference > 0).sum()) > math.ceil(0.01 * len(other)):
        too_far = difference > 0
    return int(too_far.nonzero()[0]) if bool(too_far.any()) else None
