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

from ..notices import warn_user
from .kernels.hyperparameters import OF_STEP, Hyperparameters, hyperparameters
from .kernels.rounding import ROUNDED, Key, key_of_step
from .kernels.tensors import PLAIN_TENSOR_TYPES, SumOfSquares
from .kernels.torch_ops import convert_momentum
from .measurement import Measurement, is_measuring, reference_size
from .options import check_together
from .shards import Partitions, add_up, groups_of

# In a param group with stochastic rounding: the number of its updates so far, on which the random numbers depend.
ROUNDED_STEPS = "rounded_steps"
# In one with momentum_dtype="float8": the power of two in which its momentum counts; 0 until the gradient is measured.
MOMENTUM_UNIT = "momentum_unit"

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
    for param, grad, index in zip(call.params, call.grads, call.indices, strict=True):
        if grad.is_sparse:
            raise ValueError(
                f"{optimizer} does not support sparse gradients, and {describe(call.group, index)} has one: "
                "build its module with sparse=False, or give that parameter to torch.optim.SparseAdam."
            )
        if type(param) not in PLAIN_TENSOR_TYPES and hasattr(param, "to_local") and not hasattr(grad, "to_local"):
            raise ValueError(
                f"{describe(call.group, index)} is a DTensor and its gradient a plain tensor: make the gradient one "
                "with torch.distributed.tensor.distribute_tensor."
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
            local = grad.to_local() if hasattr(grad, "to_local") else grad
            found[groups_of(param, partitions)] += bool(local.any())
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
    buffers: Callable[[dict[str, Any], Sequence[Tensor]], Sequence[Tensor] | None]  # likewise
    _squares: defaultdict[Any, SumOfSquares] = field(default_factory=lambda: defaultdict(SumOfSquares))
    _rounded: dict[int, dict[str, Any]] = field(default_factory=dict)  # the groups rounded stochastically, by their id
    _units: list[tuple[dict[str, Any], Tensor, float]] = field(default_factory=list)  # those of single momenta
    _device: torch.device | None = None

    def apply(self, call: Call) -> None:
        """Update the parameters of a call."""
        group, before = call.group, 0
        if group.get("momentum_dtype") == "float8" and not group.get(MOMENTUM_UNIT):
            check_together(group)
            group[MOMENTUM_UNIT] = _power_of_two(reference_size(group))
            if not group[MOMENTUM_UNIT]:
                self._apply_one_by_one(call)
                return
        options = {name: group[name] for name in OF_STEP if name in group} | {"rounding": None}
        parts: Iterable[tuple[Call, SumOfSquares | None]] = [(call, None)]
        if self.measurement is not None and is_measuring(group):
            parts = self._by_shards(call)
            options["grad_rms"] = self.measurement.size
            if self.measurement.size is None:  # nothing is known yet, so the first update only measures
                options["lr"] = 0.0
        if _is_rounded(group):
            before = sum(len(other["params"]) for other in takewhile(lambda other: other is not group, self.groups))
            options |= {"rounding": _key(group), "rounds_params": group.get("rounding") == "stochastic"}
            self._rounded[id(group)] = group
        for part, squares in parts:
            numbers = [before + index for index in part.indices] if before else part.indices
            self.make_step(part, hyperparameters(**options, squares=squares), numbers)

    def end(self) -> None:
        """Count the update, and add up what was measured over the shards of the parameters."""
        if self._rounded and not any(group.get(ROUNDED_STEPS) for group in self.groups):
            _notice_no_effect(self.groups)
        for group in self._rounded.values():
            group[ROUNDED_STEPS] = group.get(ROUNDED_STEPS, 0) + 1
        if self.measurement is None:
            return
        if self.partitions is not None:
            self._squares[(self.partitions.group,)]  # makes it: the other processes wait for this one
        sums = [add_up(key, part.total(), part.count, self._device) for key, part in self._squares.items()]
        self.measurement.end(self.groups, sum(squares for squares, _ in sums), sum(count for _, count in sums))
        for group, param, unit in self._units:
            group[MOMENTUM_UNIT] = found = _power_of_two(reference_size(group))
            for buffer in self.buffers(group, [param]) or ():  # of gradients without a size, nothing is kept
                convert_momentum(buffer, buffer, unit if found else 0.0, found or 1.0)

    def _apply_one_by_one(self, call: Call) -> None:
        """Update each parameter with a unit of its own for its momentum, until the end of the update finds theirs."""
        for param, grad, index in zip(*call[1:], strict=True):
            local = grad.to_local() if hasattr(grad, "to_local") else grad
            largest = float(max(map(abs, torch.aminmax(local)))) if local.numel() else 0.0
            unit = call.group[MOMENTUM_UNIT] = _power_of_two(largest * 2.0**-12) or 1.0  # with room for larger ones
            self._units.append((call.group, param, unit))
            self.apply(Call(call.group, [param], [grad], [index]))
        call.group[MOMENTUM_UNIT] = 0.0

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


def prepare_rounding(group: dict[str, Any]) -> None:
    """Write into a new group what its rounding needs, from the start, so that every kind of checkpoint finds it."""
    if _is_rounded(group):
        group.setdefault(ROUNDED_STEPS, 0)
    if group.get("momentum_dtype") == "float8":
        group.setdefault(MOMENTUM_UNIT, 0.0)


def _is_rounded(group: dict[str, Any]) -> bool:
    return group.get("rounding") == "stochastic" or group.get("momentum_dtype") == "float8"


def _power_of_two(size: float | None) -> float:
    """Return the power of two below a size, or 0 where there is none."""
    if size is None or not 0.0 < size < math.inf:
        return 0.0
    return 2.0 ** min(max(math.frexp(size)[1] - 1, -100), 80)


def _key(group: dict[str, Any]) -> Key:
    """Return the random numbers of the group's next update."""
    if torch.compiler.is_compiling() or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
        raise ValueError(
            "rounding='stochastic' needs new random numbers at each step, which torch.compile and CUDA graphs do not "
            "draw. Make the step outside of them, or use rounding='nearest'."
        )
    return key_of_step(group["rounding_seed"], group.get(ROUNDED_STEPS, 0))


def _notice_no_effect(groups: Groups) -> None:
    """Warn if none of the groups that are to be rounded stochastically holds anything that is rounded."""
    if not any(
        group.get("momentum_dtype") in ("bfloat16", "float8")
        or any(param.dtype in ROUNDED for param in group["params"])
        for group in groups
        if _is_rounded(group)
    ):
        warn_user(
            "rounding='stochastic' has no effect here: neither parameters nor momentum are bfloat16 or float16. Mixed "
            "precision (--bf16) and DeepSpeed keep weights in float32. Load the model with dtype=torch.bfloat16."
        )
