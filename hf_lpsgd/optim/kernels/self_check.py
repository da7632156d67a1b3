"""A fused kernel proves itself before it is used on a device: against torch's own operations, on some elements."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import torch_ops
from .hyperparameters import Hyperparameters
from .rounding import ROUNDED, key_of_step
from .tensors import Dtypes, SumOfSquares, Tensors

Step = Callable[[Tensors, Hyperparameters], bool]

# Two whole blocks of the CUDA kernel and a tail; vectors and a tail, which begin one element into their memory; one
# element.
_SIZES = (2053, 301, 1)
_LARGE = 70_000  # elements that the CPU kernel shares out among threads


class _Case(NamedTuple):
    hyper: Hyperparameters
    sizes: tuple[int, ...] = _SIZES
    measures: bool = False  # the sum of squares
    lr_in_tensor: bool = False


# Each of a kernel's branches: with and without a power, the two ways to form the mean, a measuring step and another.
_STEP = Hyperparameters(0.01, grad_weight=0.1, rho=0.8, eps=1e-8, weight_decay=0.1)
_BOUNDED = _STEP._replace(grad_weight=0.6, rho=0.9, lr_scale=0.3, bound=0.02)
_CASES = {
    "a step": _Case(_STEP, measures=True),
    "a step on a large tensor": _Case(_STEP, sizes=(_LARGE,)),
    "a step with p = 2": _Case(_STEP._replace(rho=0.0, weight_decay=0.0, sign=-1.0)),
    "a step with p = 2 and little momentum": _Case(_STEP._replace(rho=0.0, grad_weight=0.6), lr_in_tensor=True),
    "a bounded step with little momentum": _Case(_BOUNDED, measures=True),
    "a step with stochastic rounding": _Case(_STEP._replace(rounding=key_of_step(0, 1)), measures=True),
}

# By how much, and by how much of themselves, values may differ: as in the tests. Those of 16 bits may differ by a unit
# in the last place, and only seldom: the float32 values that are rounded differ by far less than that.
_ABSOLUTE = 1e-7
_RELATIVE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
_SHARE_OF_OTHERS = 0.01


@torch.no_grad()
def why_wrong(step: Step, device: torch.device, dtypes: Dtypes) -> str | None:
    """Say what a kernel computes otherwise than torch's operations do on `device`; None where they agree.

    Args:
        step: of the kernel.
        device: what to compute on.
        dtypes: of the tensors that it is to update.
    """
    for name, case in _CASES.items():
        expected = _results(_by_torch, case, device, dtypes)
        try:
            found = _results(step, case, device, dtypes)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of whichever kind the kernel raises
            said = str(error).strip().splitlines() or [""]
            return f"{name} fails with {type(error).__name__}: {said[-1]}"
        for kind, one in found.items():
            wrong = _first_wrong(one, expected[kind])
            if wrong is not None:
                values = f"{kind} is {one[wrong]:.9g} and not {expected[kind][wrong]:.9g}"
                return f"in {name} with {_words(dtypes)}, {values}"
    return None


def _by_torch(tensors: Tensors, hyper: Hyperparameters) -> bool:
    torch_ops.step(tensors, hyper, foreach=False)
    return True


def _results(step: Step, case: _Case, device: torch.device, dtypes: Dtypes) -> dict[str, Tensor]:
    """Return what a step makes of the parameters, the momentum and the sum of squares."""
    columns = [
        [_values(size, number, kind, device, dtype) for number, size in enumerate(case.sizes)]
        for kind, dtype in enumerate(dtypes)
        if dtype is not None
    ]
    tensors = Tensors(columns[0], columns[1], columns[2] if columns[2:] else None, range(len(case.sizes)))
    hyper, squares = case.hyper, SumOfSquares()
    if case.measures:
        hyper = hyper._replace(squares=squares)
    if case.lr_in_tensor:
        hyper = hyper._replace(lr=torch.tensor(hyper.lr, device=device))
    if not step(tensors, hyper):
        raise RuntimeError("it was not made")
    results = {"a parameter": torch.cat(columns[0]).cpu()}
    if columns[2:]:
        results["a momentum"] = torch.cat(columns[2]).cpu()
    if case.measures:
        results["the sum of squares"] = torch.tensor([squares.total()], dtype=torch.float32)
    return results


def _values(size: int, number: int, kind: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return values of many sizes and both signs, the same at each call; the address of every second is not aligned.

    A gradient has the sign of its momentum: where they cancel, the least rounding makes another step.
    """
    places = torch.arange(size, dtype=torch.float32, device=device)
    signs = 1 - 2 * (places % 3 == 0).float()
    turns = places * (1.7 + kind) + number
    values = signs * turns.sin().abs() * 10.0 ** (1.5 * turns.cos() - 1.5)
    shift = number % 2
    return torch.empty(size + shift, dtype=dtype, device=device)[shift:].copy_(values)


def _first_wrong(one: Tensor, other: Tensor) -> int | None:
    """Return the place of the first value that differs by more than it may, or of any if too many differ."""
    difference = (one.double() - other.double()).abs()
    too_far = ~(difference <= _ABSOLUTE + _RELATIVE[other.dtype] * other.double().abs())
    if other.dtype in ROUNDED and int((difference > 0).sum()) > math.ceil(_SHARE_OF_OTHERS * len(other)):
        too_far = difference > 0
    return int(too_far.nonzero()[0]) if bool(too_far.any()) else None


def _words(dtypes: Dtypes) -> str:
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes if dtype is not None]
    kinds = ("parameters", "gradients", "momentum")
    return ", ".join(f"{name} {kind}" for name, kind in zip(names, kinds, strict=False))
