"""A fused kernel proves itself before it is used on a device: against torch's own operations, on some elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from . import torch_ops
from .rounding import ROUNDED, StochasticRounding
from .tensors import ParamGradBuffer, StepHyperparameters, SumOfSquares

Step = Callable[[list[ParamGradBuffer], StepHyperparameters], bool]

# Of parameters, gradients and momentum buffers; None where there are no buffers.
Dtypes = tuple[torch.dtype | None, ...]

# Whole vectors; more and a tail, which begin one element into their memory; and one element.
_SIZES = (256, 301, 1)

_CASES = {
    "a step": StepHyperparameters(0.01, 0.9, 0.8, 1e-8, 0.1, False),
    "a step with p = 2": StepHyperparameters(0.01, 0.4, 0.0, 1e-8, 0.0, True),
    "a bounded step": StepHyperparameters(0.01, 0.6, 0.9, 1e-8, 0.1, False, lr_scale=0.3, bound=0.02),
    "a step with stochastic rounding": StepHyperparameters(
        0.01, 0.9, 0.8, 1e-8, 0.1, False, rounding=StochasticRounding(0, 1).key
    ),
}

# By how much, and by how much of themselves, values may differ: as in the tests. Those of 16 bits may differ by a unit
# in the last place, and only seldom: the float32 values that are rounded differ by far less than that.
_ABSOLUTE = 1e-7
_RELATIVE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
_SHARE_OF_OTHERS = 0.01


def why_wrong(step: Step, device: torch.device, dtypes: Dtypes) -> str | None:
    """What a kernel computes otherwise than torch's operations do on `device`; None where they agree.

    Args:
        step: of the kernel.
        device: what to compute on.
        dtypes: of the tensors that it is to update.
    """
    with torch.no_grad():
        for name, hyper in _CASES.items():
            try:
                found = _results(step, hyper, device, dtypes)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # of whichever kind the kernel raises
                said = str(error).strip().splitlines() or [""]
                return f"{name} fails with {type(error).__name__}: {said[-1]}"
            expected = _results(_by_torch, hyper, device, dtypes)
            for (kind, one), (_, other) in zip(found, expected, strict=True):
                wrong = _first_wrong(one, other)
                if wrong is not None:
                    return f"in {name} with {_words(dtypes)}, {kind} is {one[wrong]:.9g} and not {other[wrong]:.9g}"
    return None


def _by_torch(triples: list[ParamGradBuffer], hyper: StepHyperparameters) -> bool:
    torch_ops.step(triples, hyper, foreach=False)
    return True


def _results(step: Step, hyper: StepHyperparameters, device: torch.device, dtypes: Dtypes) -> list[tuple[str, Tensor]]:
    """What a step makes of the parameters, the momentum and the sum of squares, in words and numbers."""
    triples, squares = list(_triples(device, dtypes)), SumOfSquares()
    if not step(triples, hyper._replace(squares=squares)):
        raise RuntimeError("it was not made")
    results = [("a parameter", torch.cat([triple.param for triple in triples]).cpu())]
    buffers = [triple.buffer for triple in triples if triple.buffer is not None]
    if buffers:
        results.append(("a momentum", torch.cat(buffers).cpu()))
    return [*results, ("the sum of squares", torch.tensor([squares.total()], dtype=torch.float32))]


def _triples(device: torch.device, dtypes: Dtypes) -> Iterator[ParamGradBuffer]:
    """Values of many sizes and both signs, the same at each call."""
    for number, size in enumerate(_SIZES):
        tensors: list[Tensor | None] = []
        for place, dtype in enumerate(dtypes):
            turns = torch.arange(size + 1, dtype=torch.float32, device=device) * (1.7 + place) + number
            values = turns.sin() * 10.0 ** (1.5 * turns.cos() - 1.5)
            tensors.append(None if dtype is None else values.to(dtype)[number % 2 :][:size])
        param, grad, buffer = tensors
        assert param is not None
        assert grad is not None
        yield ParamGradBuffer(param, grad, buffer, number)


def _first_wrong(one: Tensor, other: Tensor) -> int | None:
    """The place of the first value that differs by more than it may, or of any if too many differ."""
    difference = (one.double() - other.double()).abs()
    too_far = ~(difference <= _ABSOLUTE + _RELATIVE[other.dtype] * other.double().abs())
    if other.dtype in ROUNDED and int((difference > 0).sum()) > math.ceil(_SHARE_OF_OTHERS * len(other)):
        too_far = difference > 0
    return int(too_far.nonzero()[0]) if bool(too_far.any()) else None


def _words(dtypes: Dtypes) -> str:
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes if dtype is not None]
    kinds = ("parameters", "gradients", "momentum")
    return ", ".join(f"{name} {kind}" for name, kind in zip(names, kinds, strict=False))
