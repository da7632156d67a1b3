"""What LPSGD and LPSGDM have in common: their param groups, and the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from ..notices import warn_user
from . import checkpoint
from .kernels.choice import check_fused, uncompiled, update
from .kernels.hyperparameters import Hyperparameters
from .kernels.tensors import Tensors
from .measurement import Measurement, is_measuring
from .options import LR, MOMENTUM_UNIT, P_FOLLOWS, Option, P, check_together
from .p_in_force import LARGEST_LR, Tie, Untied, write_p
from .precision import check_momentum, check_precision
from .shards import Partitions
from .update import ROUNDED_STEPS, Call, Update, calls_with_gradients, describe, is_no_update


class LpOptimizer(Optimizer):
    """Base of the optimizers that rescale by `(|.| + eps)^rho`; a subclass has `buffers` or `make_step` of its own."""

    options: ClassVar[tuple[Option, ...]] = ()  # of the param groups, `LR` first
    tie: Tie | None = None  # what p follows; None leaves it to `p_schedule` of the param group
    partitions: Partitions | None = None  # how an engine has divided the parameters among processes; None if none has
    backward_step: Any = None  # what makes the step in the backward pass; None for the ordinary step

    def __init__(self, params: ParamsT, **defaults: Any) -> None:
        self._begin_anew((), {})
        self._check(defaults, "")
        super().__init__(params, defaults)

    def _begin_anew(self, groups: Sequence[dict[str, Any]], written_p: dict[int, float]) -> None:
        self._every_group, self._measurement = groups, Measurement(groups)
        self._rate_before: float | None = 0.0  # None when precision has been judged
        self._written_p, self._untied = written_p, Untied()  # by the place of the group
        self._loaded_p_max = {place: float(group["p_max"]) for place, group in enumerate(groups)}
        self._first_params: set[int] = set()  # of the calls of `step` that make up the present update

    def _check(self, group: dict[str, Any], where: str) -> None:
        """Check the options of a group, and make its numbers plain floats, which any checkpoint can hold."""
        for option in (*self.options, P) if "p" in group else self.options:
            value = option.check(group[option.name], where)
            if option is not LR or not isinstance(group["lr"], Tensor):
                group[option.name] = value
        check_together(group, where)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group, with its own values of any of the constructor's options.

        Args:
            param_group: `params` and options; an option that is missing takes the constructor's value.

        Raises:
            ValueError: an option is out of range, a parameter is complex, or `fused` is True and there is no fused
                implementation for a parameter's device; nothing was added.
        """
        place = len(self.param_groups)
        where = f" in param group {place}"
        super().add_param_group(param_group)  # which adds the options that are missing
        try:
            self._check(param_group, where)
            for index, param in enumerate(param_group["params"]):
                if param.is_complex():
                    raise ValueError(
                        f"{type(self).__name__} does not support complex parameters: {describe(param_group, index)}"
                        f"{where} has dtype {param.dtype}. Give it torch.view_as_real of the parameter instead."
                    )
                if param_group["fused"]:
                    check_fused(param.device, where)
        except ValueError:
            self.param_groups.pop()
            raise
        self._every_group = self.param_groups
        self._written_p[place] = param_group["p_max"]
        param_group.setdefault("p", param_group["p_max"])
        if is_measuring(param_group):
            self._measurement.join(param_group)
        check_momentum([param_group], at_construction=True)
        if param_group.get(P_FOLLOWS.name) is not None:
            param_group.setdefault(LARGEST_LR, 0.0)  # from the start, so that every kind of checkpoint finds it
        if param_group.get("rounding") == "stochastic":
            param_group.setdefault(ROUNDED_STEPS, 0)
        if param_group.get("momentum_dtype") == "float8":
            param_group.setdefault(MOMENTUM_UNIT, 0.0)

    def __setstate__(self, state: dict[str, Any]) -> None:
        before = self.__dict__.get("param_groups", ())  # there are none while a pickle is read
        is_same = checkpoint.is_same(before, state)
        replaced = checkpoint.prepare(type(self), before, state)  # fails before anything is changed
        super().__setstate__(state)
        self._begin_anew(self.param_groups, self._written_p if is_same else {})
        if self.backward_step is not None:
            self.backward_step.discard()
        if replaced:
            warn_user(
                f"The loaded state replaces options of this {type(self).__name__}: {', '.join(replaced)}. To change "
                "them, start a new run from its weights, without --resume_from_checkpoint; in a loop of your own, you "
                "can also set them in optimizer.param_groups after loading."
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Perform a single optimization step, and return the loss if there is a `closure` that computes it.

        Raises:
            ValueError: a gradient is sparse; no parameter was changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update()
        return loss

    @uncompiled  # type: ignore[untyped-decorator]  # torch.compile would keep numbers that change at each step
    def _update(self) -> None:
        if self.backward_step is not None and not self.backward_step.remove_if_over():
            self.backward_step.finish()
            return
        calls = calls_with_gradients(self.param_groups, type(self).__name__)
        if self.only_makes_state(calls):
            return
        update = self.begin_update()
        for call in calls:
            update.apply(call)
        update.end()

    def only_makes_state(self, calls: Sequence[Call]) -> bool:
        """Say whether a step is no update; then make the state, and nothing else."""
        is_none = is_no_update(self.param_groups, calls, self.partitions)
        for call in calls if is_none else ():
            self.buffers(call.group, call.params)
        return is_none

    def begin_update(self) -> Update:
        """Begin an update, or the next call of one that an engine makes by several: its p, its reference size."""
        groups = self.every_group()
        first = next((id(group["params"][0]) for group in self.param_groups if group["params"]), 0)
        is_new = first in self._first_params or not self._first_params
        self._first_params = {first} if is_new else {*self._first_params, first}
        tie = self.tie or self._untied
        write_p(groups, tie, self._written_p, self._loaded_p_max)
        if is_new:
            self._rate_before = check_precision(groups, self._rate_before)
            tie.begin_update()
        is_measured = self._measurement.begin(groups, is_new=is_new, is_past_warmup=tie.is_past_warmup())
        return Update(groups, self._measurement if is_measured else None, self.partitions, self.make_step)

    def every_group(self) -> Sequence[dict[str, Any]]:
        """Return the param groups, also while DeepSpeed's ZeRO shows one of them at a time."""
        if self._every_group is not self.param_groups:
            known = {id(group) for group in self._every_group}
            if any(id(group) not in known for group in self.param_groups):
                self._every_group = self.param_groups
        return self._every_group

    def make_step(self, call: Call, hyper: Hyperparameters, numbers: Sequence[int]) -> None:
        """Make the step of some parameters of one group; `numbers` are those of the parameters in the optimizer."""
        tensors = Tensors(call.params, call.grads, self.buffers(call.group, call.params), numbers)
        update(tensors, hyper, call.group["foreach"], call.group["fused"])

    def buffers(self, group: dict[str, Any], params: Sequence[Tensor]) -> Sequence[Tensor] | None:
        """Return the momentum buffers of `params`, made where there are none yet; None without momentum."""
        return None
