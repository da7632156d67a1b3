"""One update of an optimizer: begun by the optimizer, applied to parameters in one or more calls, and ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..notices import warn_user
from .kernels.hyperparameters import OF_STEP, Hyperparameters, hyperparameters
from .kernels.rounding import ROUNDED, Key, key_of_step
from .kernels.tensors import PLAIN_TENSOR_TYPES, SumOfSquares
from .measurement import Measurement, is_measuring
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


# Makes the step of a call: the numbers of the parameters in their optimizer are the last argument.
Step = Callable[[Call, Hyperparameters, Sequence[int]], None]


def calls_with_gradients(groups: Groups, optimizer: str) -> list[Call]:
    """Gather the parameters that have gradients, one call per group that has any.

    Raises:
        ValueError: a gradient is sparse, or a plain tensor where the parameter is a DTensor.
    """
    calls = []
    for group in groups:
        grads = [param.grad for param in group["params"]]
        indices = [index for index, grad in enumerate(grads) if grad is not None]
        if not indices:
            continue
        call = Call(group, [group["params"][index] for index in indices], [grads[index] for index in indices], indices)
        check_gradients(call, optimizer)
        calls.append(call)
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


def describe(group: dict[str, Any], index: int) -> str:
    """Say which parameter it is: its name where the optimizer was given named parameters, and its shape."""
    shape = tuple(group["params"][index].shape)
    if "param_names" in group:
        return f"the parameter {group['param_names'][index]!r} of shape {shape}"
    return f"parameter {index} of shape {shape}"


class Update:
    """An update that has begun: p is in all `groups`, and there is a `measurement` if it is to be measured."""

    def __init__(
        self, groups: Groups, measurement: Measurement | None, partitions: Partitions | None, step: Step
    ) -> None:
        self._groups, self._measurement, self._partitions, self._step = groups, measurement, partitions, step
        self._squares: dict[Any, SumOfSquares] = {}
        self._touched: list[dict[str, Any]] = []
        self._device: torch.device | None = None

    def apply(self, call: Call) -> None:
        """Update the parameters of a call."""
        group = call.group
        lr, size = group["lr"], group.get("grad_rms")
        if self._measurement is not None and is_measuring(group):
            size = self._measurement.size
            lr = 0.0 if size is None else lr  # nothing is known yet, so the first update only measures
        before, key = 0, None
        if group.get("rounding") == "stochastic":
            before, key = _first_number(self._groups, group), _key(group)
        options = {name: group[name] for name in OF_STEP if name in group and name != "rounding"}
        for part, squares in self._by_shards(call):
            hyper = hyperparameters(**{**options, "lr": lr, "grad_rms": size}, squares=squares, rounding=key)
            self._step(part, hyper, part.indices if key is None else [before + index for index in part.indices])
        self._touched.append(group)

    def end(self) -> None:
        """Count the update, and add up what was measured over the shards of the parameters."""
        rounded = {id(group): group for group in self._touched if group.get("rounding") == "stochastic"}.values()
        if rounded and not any(group.get(ROUNDED_STEPS) for group in self._groups):
            _notice_no_effect(self._groups)
        for group in rounded:
            group[ROUNDED_STEPS] = group.get(ROUNDED_STEPS, 0) + 1
        if self._measurement is None:
            return
        if self._partitions is not None:
            self._squares_over((self._partitions.group,))  # the other processes wait for this one
        sums = [add_up(key, part.total(), part.count, self._device) for key, part in self._squares.items()]
        self._measurement.end(self._groups, sum(squares for squares, _ in sums), sum(count for _, count in sums))

    def _by_shards(self, call: Call) -> list[tuple[Call, SumOfSquares | None]]:
        """The parts of a call whose squares are added up over other processes; one, where nothing is measured."""
        if self._measurement is None or not is_measuring(call.group):
            return [(call, None)]
        self._device = call.params[0].device
        parts: dict[Any, list[int]] = {}
        for place, param in enumerate(call.params):
            parts.setdefault(groups_of(param, self._partitions), []).append(place)
        found: list[tuple[Call, SumOfSquares | None]] = []
        for key, places in parts.items():
            params, grads, indices = ([column[place] for place in places] for column in call[1:])
            squares = self._squares_over(key)
            if self._partitions is not None:
                squares.count -= sum(self._partitions.padding.get(id(param), 0) for param in params)
            found.append((Call(call.group, params, grads, indices), squares))  # type: ignore[arg-type]
        return found

    def _squares_over(self, groups: tuple[Any, ...]) -> SumOfSquares:
        return self._squares.setdefault(groups, SumOfSquares())


def _first_number(groups: Groups, group: dict[str, Any]) -> int:
    """The number in the optimizer of the group's first parameter."""
    place = next(index for index, other in enumerate(groups) if other is group)
    return sum(len(other["params"]) for other in groups[:place])


def _key(group: dict[str, Any]) -> Key:
    """The random numbers of the group's next update."""
    if torch.compiler.is_compiling() or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
        raise ValueError(
            "rounding='stochastic' needs new random numbers at each step, which a step that is compiled by "
            "torch.compile or captured in a CUDA graph does not draw. Make the step outside of it, or use "
            "rounding='nearest'."
        )
    return key_of_step(group["rounding_seed"], group.get(ROUNDED_STEPS, 0))


def _notice_no_effect(groups: Groups) -> None:
    """Warn if none of the groups that are to be rounded stochastically holds anything that is rounded."""
    if not any(
        group.get("momentum_dtype") == "bfloat16" or any(param.dtype in ROUNDED for param in group["params"])
        for group in groups
        if group.get("rounding") == "stochastic"
    ):
        warn_user(
            "rounding='stochastic' has no effect here: neither parameters nor momentum are bfloat16 or float16. "
            "Automatic mixed precision (--bf16) and DeepSpeed keep the weights in float32. To train in bfloat16, "
            "load the model with dtype=torch.bfloat16."
        )
