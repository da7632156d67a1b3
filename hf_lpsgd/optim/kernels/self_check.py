"""A fused kernel proves itself before it is used on a device: against torch's own operations, on some elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import torch_ops
from .rounding import ROUNDED, StochasticRounding
from .tensors import ParamGradBuffer, StepHyperparameters, SumOfSquares

Step = Callable[[list[ParamGradBuffer], StepHyperparameters], bool]

# Of parameters, gradients and momentum buffers; None where there are no buffers.
Dtypes = tuple[torch.dtype | None, ...]

# Two whole blocks of the CUDA kernel and a tail; vectors and a tail, which begin one element into their memory; one
# element.
_SIZES = (2053, 301, 1)
_LARGE = 70_000  # elements that the CPU kernel shares out among threads


class _Case(NamedTuple):
    hyper: StepHyperparameters
    sizes: tuple[int, ...] = _SIZES
    measures: bool = True  # the sum of squares
    lr_in_tensor: bool = False


# Each of a kernel's branches: with and without a power, the two ways to form the mean, a measuring step and another.
_CASES = {
    "a step": _Case(StepHyperparameters(0.01, 0.9, 0.8, 1e-8, 0.1, False)),
    "a step on a large tensor": _Case(
        StepHyperparameters(0.01, 0.9, 0.8, 1e-8, 0.1, False), sizes=(_LARGE,), measures=False
    ),
    "a step with p = 2": _Case(StepHyperparameters(0.01, 0.9, 0.0, 1e-8, 0.0, True), measures=False),
    "a step with p = 2 and little momentum": _Case(
        StepHyperparameters(0.01, 0.4, 0.0, 1e-8, 0.1, False), measures=False, lr_in_tensor=True
    ),
    "a bounded step with little momentum": _Case(
        StepHyperparameters(0.01, 0.4, 0.9, 1e-8, 0.1, False, lr_scale=0.3, bound=0.02)
    ),
    "a step with stochastic rounding": _Case(
        StepHyperparameters(0.01, 0.9, 0.8, 1e-8, 0.1, False, rounding=StochasticRounding(0, 1).key)
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
        tensors = {sizes: list(_triples(device, dtypes, sizes)) for sizes in {case.sizes for case in _CASES.values()}}
        for name, case in _CASES.items():
            try:
                found = _results(step, case, tensors[case.sizes])
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # of whichever kind the kernel raises
                said = str(error).strip().splitlines() or [""]
                return f"{name} fails with {type(error).__name__}: {said[-1]}"
            expected = _results(_by_torch, case, tensors[case.sizes])
            for (kind, one), (_, other) in zip(found, expected, strict=True):
                wrong = _first_wrong(one, other)
                if wrong is not None:
                    return f"in {name} with {_words(dtypes)}, {kind} is {one[wrong]:.9g} and not {other[wrong]:.9g}"
    return None


def _by_torch(triples: list[ParamGradBuffer], hyper: StepHyperparameters) -> bool:
    torch_ops.step(triples, hyper, foreach=False)
    return True


def _results(step: Step, case: _Case, tensors: list[ParamGradBuffer]) -> list[tuple[str, Tensor]]:
    """What a step makes of the parameters, the momentum and the sum of squares, in words and numbers."""
    triples, hyper, squares = [_copy(triple) for triple in tensors], case.hyper, SumOfSquares()
    if case.measures:
        hyper = hyper._replace(squares=squares)
    if case.lr_in_tensor:
        hyper = hyper._replace(lr=torch.tensor(hyper.lr, device=triples[0].param.device))
    if not step(triples, hyper):
        raise RuntimeError("it was not made")
    results = [("a parameter", torch.cat([triple.param for triple in triples]).cpu())]
    buffers = [triple.buffer for triple in triples if triple.buffer is not None]
    if buffers:
        results.append(("a momentum", torch.cat(buffers).cpu()))
    if case.measures:
        results.append(("the sum of squares", torch.tensor([squares.total()], dtype=torch.float32)))
    return results


def _triples(device: torch.device, dtypes: Dtypes, sizes: tuple[int, ...]) -> Iterator[ParamGradBuffer]:
    """Values of many sizes and both signs, the same at each call.

    A gradient has the sign of its momentum: where they cancel, the least rounding makes another step.
    """
    for number, size in enumerate(sizes):
        tensors: list[Tensor | None] = []
        places = torch.arange(size, dtype=torch.float32, device=device)
        signs = 1 - 2 * (places % 3 == 0).float()
        for kind, dtype in enumerate(dtypes):
            turns = places * (1.7 + kind) + number
            values = signs * turns.sin().abs() * 10.0 ** (1.5 * turns.cos() - 1.5)
            tensors.append(None if dtype is None else values.to(dtype))
        param, grad, buffer = tensors
        assert param is not None
        assert grad is not None
        yield ParamGradBuffer(param, grad, buffer, number)


def _copy(triple: ParamGradBuffer) -> ParamGradBuffer:
    """The tensors once more; every second parameter's begin one element into their memory, so are not aligned."""

    def copied(tensor: Tensor) -> Tensor:
        first = triple.number % 2
        copy = tensor.new_empty(len(tensor) + first)[first:]
        return copy.copy_(tensor)

    param, grad, buffer, number = triple
    return ParamGradBuffer(copied(param), copied(grad), None if buffer is None else copied(buffer), number)


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
