"""What LPSGD and LPSGDM have in common: param groups, their checks, and the loop of a step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from . import functional, grad_rms
from .functional import check_fused
from .kernels.tensors import PLAIN_TENSOR_TYPES, SumOfSquares
from .options import (
    EPS,
    FOREACH,
    FUSED,
    GRAD_RMS,
    LR,
    LR_FACTOR,
    MOMENTUM,
    P_MAX,
    SATURATION,
    Number,
    NumberOrWord,
    P,
    Switch,
)

# A param group, its parameters that have gradients, and the gradients.
Call = tuple[dict[str, Any], list[Tensor], list[Tensor]]

# How far below the least value rounding may leave an option that a schedule lowers; harmless except in eps.
_ROUNDING = 1e-9


class LpOptimizer(Optimizer):
    """Base of the optimizers that rescale by `(|.| + eps)^rho`; not to be used by itself.

    A subclass lists the options of its param groups in `options`, `LR` first, and implements `_update_group`.
    """

    options: ClassVar[tuple[Number | NumberOrWord | Switch, ...]] = ()

    # Whether no element may move by more than lr_factor * lr where there is a reference size.
    _bounded: ClassVar[bool] = True

    def __init__(self, params: ParamsT, **defaults: Any) -> None:
        self._check(defaults, "")
        self._measurement = grad_rms.Measurement()
        self._settled: dict[int, tuple[Any, ...]] = {}
        super().__init__(params, defaults)
        if all(group.get("grad_rms") is None for group in self.param_groups):
            grad_rms.check_used(defaults, "")

    def _check(self, group: dict[str, Any], where: str) -> None:
        """Check the options of a group, and make its numbers plain floats, which any checkpoint can hold."""
        for option in self.options:
            value = option.check(group[option.name], where)
            if option is not LR or not isinstance(group["lr"], Tensor):
                group[option.name] = value
        if "p" in group:
            group["p"] = P.check(group["p"], where)
        _check_implementation(group, where)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group, with its own values of any of the constructor's options.

        Args:
            param_group: `params` and options; an option that is missing takes the constructor's value, and `p`, the
                order in force, takes the group's `p_max`.

        Raises:
            ValueError: an option is out of range, a parameter is complex, or `fused` is True and there is no fused
                implementation for a parameter's device; nothing was added.
        """
        where = f" in param group {len(self.param_groups)}"
        if isinstance(param_group, dict):
            grad_rms.check_used({"grad_rms": self.defaults.get("grad_rms"), **param_group}, where)
            for name, default in self.defaults.items():
                param_group.setdefault(name, default)
            self._check(param_group, where)
            param_group.setdefault("p", param_group["p_max"])
            if grad_rms.takes_part(param_group):
                grad_rms.join(param_group, self.param_groups)
        super().add_param_group(param_group)
        try:
            self._check_params(self.param_groups[-1], where)
        except ValueError:
            self.param_groups.pop()
            raise
        self._known_groups = self.param_groups

    def _check_params(self, group: dict[str, Any], where: str) -> None:
        for index, param in enumerate(group["params"]):
            if param.is_complex():
                raise ValueError(
                    f"{type(self).__name__} does not support complex parameters: {_describe(group, index)}{where} "
                    f"has dtype {param.dtype}. Give it torch.view_as_real of the parameter instead."
                )
            if group["fused"]:
                check_fused(param.device, where)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # All checks come first, so that a refused state changes nothing.
        present = self.__dict__.get("param_groups", ())  # there are none while a pickle is read
        numbers = [option for option in self.options if isinstance(option, Number)]
        for index, group in enumerate(state.get("param_groups", ())):
            missing = [option.name for option in numbers if option.name not in group]
            if missing:
                raise ValueError(
                    f"The state holds no {' and no '.join(missing)} and so is not one of {type(self).__name__}: "
                    "load a checkpoint that the same optimizer wrote."
                )
            if present:
                self._check_owner(group, present[index])
            group.setdefault("p", group["p_max"])
            group.setdefault("maximize", False)
            if GRAD_RMS in self.options:
                group.setdefault("grad_rms", None)  # which version 0.1.0 did not know
                if SATURATION in self.options:
                    group.setdefault("saturation", None)
                if LR_FACTOR in self.options:  # which the first steps with a measured size did not know
                    group.setdefault("lr_factor", 1.0 if grad_rms.MEASURED in group else None)
                GRAD_RMS.check(group["grad_rms"], " in the loaded state")
                if grad_rms.takes_part(group) and grad_rms.MEASURED not in group:
                    grad_rms.join(group, ())
            for name in ("foreach", "fused"):
                # The implementation is a matter of this machine, not of the one that wrote the checkpoint.
                group[name] = present[index][name] if present else group.get(name)
            for option in (*numbers, P):
                if option is not LR and not _is_plainly_allowed(option, group[option.name]):  # LR schedulers set lr
                    option.check(group[option.name], " in the loaded state")
        replaced = self._replaced_options(present, state.get("param_groups", ()))
        # Accelerate loads an optimizer's own state into it, which is no resume. A copy and a pickle are one.
        is_resume = not present or any(
            bool(before.get(name) != value)
            for before, after in zip(present, state.get("param_groups", ()), strict=False)
            for name, value in after.items()
            if name != "params"
        )
        super().__setstate__(state)
        self._known_groups = self.param_groups
        self.__dict__.setdefault("_measurement", grad_rms.Measurement()).begin_anew()
        self._settled = {}
        if is_resume and state.get("param_groups"):
            first = self.param_groups[0]
            self._loaded_p = (float(first["p"]), float(first["p_max"]))
        if replaced:
            warnings.warn(
                f"The loaded state replaces options of this {type(self).__name__}: {', '.join(replaced)}. To change "
                "them on purpose, set them in optimizer.param_groups after loading, or start a new run from the "
                "weights of the checkpoint.",
                stacklevel=4,
            )

    def _check_owner(self, group: dict[str, Any], present: dict[str, Any]) -> None:
        """Fail where a loaded group has an option of another class that the present one has not."""
        for other in _subclasses(LpOptimizer):
            foreign = [option.name for option in other.options if option.name not in {o.name for o in self.options}]
            held = [name for name in foreign if name in group and name not in present]
            if held:
                raise ValueError(
                    f"The state holds {' and '.join(held)} and so is one of {other.__name__}, not of "
                    f"{type(self).__name__}: load a checkpoint that the same optimizer wrote."
                )

    def _replaced_options(self, present: Sequence[dict[str, Any]], loaded: Sequence[dict[str, Any]]) -> list[str]:
        """In words, each option whose value in a loaded group differs from the one in force so far."""
        names = [option.name for option in self.options if option not in (LR, FOREACH, FUSED)]
        words: dict[str, None] = {}
        for before, after in zip(present, loaded, strict=False):
            cycled = MOMENTUM.name if "max_momentum" in after else None  # by OneCycleLR or CyclicLR, at each step
            for name in (*names, "initial_lr"):
                if name == "grad_rms" and grad_rms.takes_part(before) and grad_rms.MEASURED in after:
                    continue  # a number that was asked for as "auto"
                if name != cycled and name in before and name in after and before[name] != after[name]:
                    shown = "lr (initial_lr)" if name == "initial_lr" else name
                    words[f"{shown} is {_shown(after[name])}, not {_shown(before[name])} as asked for"] = None
        return list(words)

    def _notice_no_tie(self) -> None:
        loaded = self._take_loaded_p()  # a tie would have taken it
        first = self.param_groups[0] if loaded else {}
        if loaded is not None and first["p"] == loaded[0] < first["p_max"]:
            warnings.warn(
                f"p is {loaded[0]:.4g} in the loaded or copied state, below p_max = {first['p_max']:.4g}, and no LR "
                "scheduler is tied to this optimizer, so that p stays there. Call hf_lpsgd.tie_p_schedule as before "
                "the state was saved. If p is to stay, set p_max to it.",
                stacklevel=5,
            )

    def _take_loaded_p(self) -> tuple[float, float] | None:
        """The first group's p and p_max as last loaded, for whoever asks first; then None."""
        loaded: tuple[float, float] | None = self.__dict__.pop("_loaded_p", None)
        return loaded

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Perform a single optimization step, and return the loss if there is a `closure` that computes it.

        Raises:
            ValueError: a gradient is sparse, or a plain tensor where the parameter is a DTensor, or `fused` is True
                and a parameter is on a device without a fused implementation, or an option that was changed in a
                param group is out of range; no parameter was changed.
        """
        loss = None
        if not torch.compiler.is_compiling():
            self._notice_no_tie()
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with_size = (P_MAX, SATURATION, LR_FACTOR)
        names = ["p", *(option.name for option in self.options if option not in with_size)]
        calls = [self._with_gradients(group) for group in self.param_groups]
        sizes: list[float | None] = []
        measured = None
        if any(group.get("grad_rms") is not None for group in self.param_groups):
            sizes, measured = self._begin_measuring(calls)
        for index, (group, params, grads) in enumerate(calls):
            if params:
                hyper = {name: group[name] for name in names}
                if sizes:
                    squares = measured if grad_rms.takes_part(group) else None
                    size = sizes[index]
                    if size is not None:
                        size *= grad_rms.saturation_of(group)
                        hyper.update(lr_factor=grad_rms.lr_factor_of(group))
                    hyper.update(grad_rms=size, squares=squares, bounded=self._bounded)
                self._update_group(params, grads, **hyper)
        if measured is not None:
            self._end_measuring(measured, calls)
        return loss

    def _every_group(self) -> list[dict[str, Any]]:
        """The param groups, also while DeepSpeed's ZeRO shows one of them at a time."""
        known: list[dict[str, Any]] = self.__dict__.get("_known_groups", self.param_groups)
        if known is self.param_groups:
            return known
        if any(all(group is not other for other in known) for group in self.param_groups):
            known = self._known_groups = self.param_groups
        return known

    def _begin_measuring(self, calls: list[Call]) -> tuple[list[float | None], SumOfSquares | None]:
        """The reference size for each of `calls`, and what is to gather squares, if they are still measured."""
        for group in self._measuring():
            if grad_rms.MEASURED not in group:  # "auto" was written into the group
                grad_rms.join(group, self._every_group())
        measuring = self._measuring()
        if measuring:
            first = next((group["params"][0] for group in self.param_groups if group["params"]), None)
            self._measurement.begin_call(measuring, first)
        if not any(map(grad_rms.takes_part, measuring)):
            return [grad_rms.reference_size(group) for group, _, _ in calls], None
        if grad_rms.size_before(measuring[0]) is None:
            # Nothing is known yet, so each group is measured before its first step.
            return self._measure_ahead(calls), None
        sizes = [
            grad_rms.size_before(group) if grad_rms.takes_part(group) else grad_rms.reference_size(group)
            for group, _, _ in calls
        ]
        return sizes, SumOfSquares()

    def _measure_ahead(self, calls: list[Call]) -> list[float | None]:
        ahead = [SumOfSquares() for _ in calls]
        for squares, (group, params, grads) in zip(ahead, calls, strict=True):
            if grad_rms.takes_part(group):
                triples = list(zip(params, grads, self._buffers(params), strict=True))
                functional.measure_ahead(triples, group.get("momentum", 0.0), squares)
        sums = grad_rms.add_up([(squares.total(), squares.count) for squares in ahead], _device_of(calls))
        self._measurement.end_call(self._measuring(), sums)
        sizes: list[float | None] = []
        for (group, _, _), (squares_of_all, count) in zip(calls, sums, strict=True):
            own = grad_rms.root_mean_square(squares_of_all, count) if count else 0.0
            usable = own if own > grad_rms.SMALLEST and math.isfinite(own) else 1.0
            sizes.append(usable if grad_rms.takes_part(group) else grad_rms.reference_size(group))
        return sizes

    def _end_measuring(self, measured: SumOfSquares, calls: list[Call]) -> None:
        sums = grad_rms.add_up([(measured.total(), measured.count)], _device_of(calls))
        self._measurement.end_call(self._measuring(), sums)

    def _measuring(self) -> list[dict[str, Any]]:
        return [group for group in self._every_group() if grad_rms.takes_part(group)]

    def _buffers(self, params: list[Tensor]) -> Sequence[Tensor | None]:
        """The momentum buffers of `params`, made where there are none yet."""
        return [None] * len(params)

    def _with_gradients(self, group: dict[str, Any]) -> Call:
        params, grads = [], []
        if not torch.compiler.is_compiling():
            self._check_options_in_force(group)
        for index, param in enumerate(group["params"]):
            grad = param.grad
            if grad is None:
                continue
            if grad.is_sparse:
                raise ValueError(
                    f"{type(self).__name__} does not support sparse gradients, and {_describe(group, index)} has one: "
                    "build its module with sparse=False, or give that parameter to torch.optim.SparseAdam."
                )
            if type(param) not in PLAIN_TENSOR_TYPES and hasattr(param, "to_local") and not hasattr(grad, "to_local"):
                raise ValueError(
                    f"{_describe(group, index)} is a DTensor and its gradient a plain tensor: make the gradient one "
                    "with torch.distributed.tensor.distribute_tensor."
                )
            if group["fused"]:
                check_fused(param.device, at_step=True)
            params.append(param)
            grads.append(grad)
        return group, params, grads

    def _check_options_in_force(self, group: dict[str, Any]) -> None:
        """Check what anyone may have written into a group since it was added."""
        # Most options are at each step what they were at the step before; lr and p are what schedules change.
        settled = tuple([group[option.name] for option in self.options if option is not LR])
        options: tuple[Number | NumberOrWord | Switch, ...] = (*self.options, P)
        if self._settled.get(id(group)) == settled:
            options = (LR, P)
        for option in options:
            value = group[option.name]
            if isinstance(option, Number) and _is_plainly_allowed(option, value):
                continue
            if isinstance(value, Tensor):
                if value.numel() == 1:  # reading it would wait for its device
                    continue
            elif option is LR:  # an LR scheduler's rounding may leave it just below 0
                continue
            option.check(value, " in a param group")
        if len(options) > 2:
            _check_implementation(group, " in a param group")
            self._settled[id(group)] = settled

    def _update_group(self, params: list[Tensor], grads: list[Tensor], **hyper: Any) -> None:
        """Make the step of one param group, given `p` and all of `options` except `p_max`."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to update a param group")


def _is_plainly_allowed(option: Number, value: Any) -> bool:
    low = option.low if option is EPS else option.low - _ROUNDING
    return type(value) is float and low <= value < (math.inf if option.below is None else option.below)


def _device_of(calls: list[Call]) -> torch.device | None:
    return next((param.device for _, params, _ in calls for param in params), None)


def _check_implementation(group: dict[str, Any], where: str) -> None:
    if group["fused"] and group["foreach"]:
        raise ValueError(
            f"Invalid fused{where}: True, with foreach=True. Only one of them can be True; leave both None, and "
            "the best implementation available will be used."
        )


def _subclasses(cls: type[LpOptimizer]) -> Iterator[type[LpOptimizer]]:
    for child in cls.__subclasses__():
        yield child
        yield from _subclasses(child)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _describe(group: dict[str, Any], index: int) -> str:
    """A parameter in words: its name where the optimizer was given named parameters, and its shape."""
    shape = tuple(group["params"][index].shape)
    if "param_names" in group:
        return f"the parameter {group['param_names'][index]!r} of shape {shape}"
    return f"parameter {index} of shape {shape}"
