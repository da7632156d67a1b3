"""One update of an optimizer: begun by the optimizer, applied to parameters in one or more calls, and ended."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .kernels.hyperparameters import OF_STEP, Hyperparameters, hyperparameters
from .kernels.rounding import Key, key_of_step
from .kernels.tensors import SumOfSquares, local
from .measurement import Measurement, is_measuring
from .options import MOMENTUM_UNIT, check_together
from .shards import Partitions, add_up, groups_of

# In a param group with rounding="stochastic": the number of its updates so far, on which the random numbers depend.
ROUNDED_STEPS = "rounded_steps"

Groups = Sequence[dict[str, Any]]


class Call(NamedTuple):
    """Parameters of one group that have gradients, the gradients, and the places of the parameters in the group."""

    group: dict[str, Any]
    params: Sequence[Tensor]
    grads: Sequence[Tensor]
    indices: Sequence[int]


def calls_with_gradients(groups: Groups, optimizer: str) -> list[Call]:
    """Gather the parameters that have gradients, one call per group that has any, and check them all."""
    calls = []
    for group in groups:
        params = enumerate(group["params"])
        rows = [(param, grad, index) for index, param in params if (grad := param.grad) is not None]
        if rows:
            calls.append(Call(group, *zip(*rows, strict=True)))
            check_gradients(calls[-1], optimizer)
    return calls


def check_gradients(call: Call, optimizer: str) -> None:
    """Fail where a gradient is of a kind that no implementation can use."""
    for grad, index in zip(call.grads, call.indices, strict=True):
        if grad.is_sparse:
            raise ValueError(
                f"{optimizer} does not support sparse gradients, and {describe(call.group, index)} has one: "
                "build its module with sparse=False, or give that parameter to torch.optim.SparseAdam."
            )


def is_no_update(groups: Groups, calls: Sequence[Call], partitions: Partitions | None) -> bool:
    """Say whether all rates and gradients are zero, as in a step by which checkpointing code makes the state.

    Where a rate is not zero, nothing is looked at on a device. All processes find the same.
    """
    rates = [group["lr"] for group in groups]
    if any((isinstance(lr, Tensor) and lr.device.type != "cpu") or lr != 0 for lr in rates):
        return False
    found = defaultdict(int, {} if partitions is None else {(partitions.group,): 0})
    for call in calls:
        for param, grad in zip(call.params, call.grads, strict=True):
            if grad.is_meta:
                return False
            found[groups_of(param, partitions)] += bool(local(grad).any())
    device = calls[0].params[0].device if calls else None
    return not any(add_up(key, count, 0, device)[0] for key, count in found.items())


def describe(group: dict[str, Any], index: int) -> str:
    """Say which parameter it is: its name where the optimizer was given named parameters, and its shape."""
    name = f"the parameter {group['param_names'][index]!r}" if "param_names" in group else f"parameter {index}"
    return f"{name} of shape {tuple(group['params'][index].shape)}"


@dataclass(eq=False)
class Update:
    """An update that has begun."""

    groups: Groups  # of the optimizer, each with the p in force
    measurement: Measurement | None  # if it is to be measured
    partitions: Partitions | None
    make_step: Callable[[Call, Hyperparameters, Sequence[int]], None]  # as LpOptimizer has it
    _squares: defaultdict[Any, SumOfSquares] = field(default_factory=lambda: defaultdict(SumOfSquares))
    _rounded: dict[int, dict[str, Any]] = field(default_factory=dict)  # the groups rounded stochastically, by their id
    _device: torch.device | None = None

    def __post_init__(self) -> None:
        # Here and not for each call: a process that holds no shard of a group must save its unit all the same.
        for group in self.groups:
            if group.get("momentum_dtype") == "float8" and not group.get(MOMENTUM_UNIT):
                check_together(group)
                size = self.measurement.size if self.measurement and is_measuring(group) else group["grad_rms"]
                # The largest power of two that is not above it, or 0 while nothing is known of it.
                group[MOMENTUM_UNIT] = 0.0 if size is None else 2.0 ** min(max(math.frexp(size)[1] - 1, -100), 80)

    def apply(self, call: Call) -> None:
        """Update the parameters of a call."""
        group, before = call.group, 0
        options = {name: group[name] for name in OF_STEP if name in group} | {"rounding": None}
        parts: Iterable[tuple[Call, SumOfSquares | None]] = [(call, None)]
        if self.measurement is not None and is_measuring(group):
            parts = self._by_shards(call)
            options["grad_rms"] = self.measurement.size
            if self.measurement.size is None:  # nothing is known yet, so the first update only measures
                options["lr"] = 0.0
        if group.get("rounding") == "stochastic":
            before = sum(len(other["params"]) for other in takewhile(lambda other: other is not group, self.groups))
            options["rounding"] = _key(group)
            self._rounded[id(group)] = group
        for part, squares in parts:
            numbers = [before + index for index in part.indices] if before else part.indices
            self.make_step(part, hyperparameters(**options, squares=squares), numbers)

    def end(self) -> None:
        """Count the update, and add up what was measured over the shards of the parameters."""
        for group in self._rounded.values():
            group[ROUNDED_STEPS] = group.get(ROUNDED_STEPS, 0) + 1
        if self.measurement is None:
            return
        if self.partitions is not None:
            self._squares[(self.partitions.group,)]  # makes it: the other processes wait for this one
        sums = [add_up(key, part.total(), part.count, self._device) for key, part in self._squares.items()]
        self.measurement.end(self.groups, sum(squares for squares, _ in sums), sum(count for _, count in sums))

    def _by_shards(self, call: Call) -> Iterator[tuple[Call, SumOfSquares]]:
        """Divide a call by the processes over which squares are added up."""
        self._device = call.params[0].device
        parts: dict[Any, list[int]] = {}
        for place, param in enumerate(call.params):
            parts.setdefault(groups_of(param, self.partitions), []).append(place)
        for key, places in parts.items():
            params, grads, indices = ([column[place] for place in places] for column in call[1:])
            if self.partitions is not None:
                self._squares[key].count -= sum(self.partitions.padding.get(id(param), 0) for param in params)
            yield Call(call.group, params, grads, indices), self._squares[key]  # type: ignore[arg-type]


def _key(group: dict[str, Any]) -> Key:
    """Return the random numbers of the group's next update."""
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise ValueError(
            "rounding='stochastic' needs new random numbers at each step, which a CUDA graph does not draw. Make the "
            "step outside of it, or use rounding='nearest'."
        )
    return key_of_step(group["rounding_seed"], group.get(ROUNDED_STEPS, 0))
