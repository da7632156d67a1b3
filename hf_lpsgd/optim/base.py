"""What LPSGD and LPSGDM have in common: param groups, their checks, and the loop of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from ..notices import warn_user
from . import functional, grad_rms, loaded_state, stochastic
from .functional import check_fused
from .kernels.tensors import PLAIN_TENSOR_TYPES, SumOfSquares
from .options import (
    GRAD_RMS,
    LR,
    LR_FACTOR,
    MOMENTUM_DTYPE,
    P_MAX,
    ROUNDING,
    ROUNDING_SEED,
    SATURATION,
    Number,
    NumberOrWord,
    Option,
    P,
    is_plainly_allowed,
)

# Options that the optimizer itself follows, and does not hand to the step as they are.
_OF_OPTIMIZER = (P_MAX, GRAD_RMS, SATURATION, LR_FACTOR, MOMENTUM_DTYPE, ROUNDING, ROUNDING_SEED)


class Call(NamedTuple):
    """Parameters of one group that have gradients, the gradients, and the places of the parameters in the group."""

    group: dict[str, Any]
    params: list[Tensor]
    grads: list[Tensor]
    indices: list[int]


class _InBackward(Protocol):
    def finish(self) -> None:
        """End the update of which the parts were made in the backward pass."""


class LpOptimizer(Optimizer):
    """Base of the optimizers that rescale by `(|.| + eps)^rho`; not to be used by itself.

    A subclass lists the options of its param groups in `options`, `LR` first, and implements `_update_group`.
    """

    options: ClassVar[tuple[Option, ...]] = ()

    # Whether no element may move by more than lr_factor * lr where there is a reference size.
    _bounded: ClassVar[bool] = True

    # What makes the step in the backward pass, if anything does; see layerwise.py.
    _in_backward: _InBackward | None = None
    _has_rounded = False

    # What sets p before an update, where a step pre-hook would come too late: in the backward pass.
    _before_update: Callable[[], None] | None = None

    _of_step: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._of_step = tuple(option.name for option in (*cls.options, P) if option not in _OF_OPTIMIZER)

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
            if stochastic.takes_part(param_group):
                stochastic.begin(param_group)
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
        for index, group in enumerate(state.get("param_groups", ())):
            loaded_state.check_kind(type(self), group, present[index] if present else None)
            loaded_state.add_what_older_versions_lack(group, self.options)
            for name in ("foreach", "fused"):
                # The implementation is a matter of this machine, not of the one that wrote the checkpoint.
                group[name] = present[index][name] if present else group.get(name)
            for option in (*self.options, P):
                if option is not LR and not is_plainly_allowed(option, group[option.name]):  # LR schedulers set lr
                    option.check(group[option.name], " in the loaded state")
        if "defaults" in state:
            loaded_state.add_options(state["defaults"], self.options)
        replaced = loaded_state.replaced_options(self.options, present, state.get("param_groups", ()))
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
            warn_user(
                f"The loaded state replaces options of this {type(self).__name__}: {', '.join(replaced)}. To change "
                "them on purpose, set them in optimizer.param_groups after loading, or start a new run from the "
                "weights of the checkpoint."
            )

    def _notice_no_tie(self) -> None:
        loaded = self._take_loaded_p()  # a tie would have taken it
        first = self.param_groups[0] if loaded else {}
        if loaded is not None and first["p"] == loaded[0] < first["p_max"]:
            warn_user(
                f"p is {loaded[0]:.4g} in the loaded or copied state, below p_max = {first['p_max']:.4g}, and no LR "
                "scheduler is tied to this optimizer, so that p stays there. Call hf_lpsgd.tie_p_schedule as before "
                "the state was saved. If p is to stay, set p_max to it."
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
        if self._in_backward is not None:
            self._in_backward.finish()
        else:
            self._update([self._with_gradients(group) for group in self.param_groups])
        return loss

    def _update(self, calls: list[Call]) -> None:
        stage = self._begin_measuring()
        squares = SumOfSquares() if stage == "going on" else None
        sizes = self._measure_ahead(calls) if stage == "first" else [self._size_before(call.group) for call in calls]
        for call, size in zip(calls, sizes, strict=True):
            if call.params:
                self._update_call(call, size, squares)
        self._end_update([call.group for call in calls if call.params])
        if squares is not None:
            self._end_measuring([squares], _device_of(calls))

    def _update_call(
        self, call: Call, size: float | None, squares: SumOfSquares | None, lr: float | Tensor | None = None
    ) -> None:
        """Update parameters of one group.

        Args:
            call: the parameters and gradients.
            size: the reference size of the gradient, if there is one.
            squares: gathers squares, if they are still measured.
            lr: another learning rate than that of the group.
        """
        group, params, grads, indices = call
        hyper = {name: group[name] for name in self._of_step}
        if lr is not None:
            hyper["lr"] = lr
        if size is not None:
            hyper["grad_rms"] = size * grad_rms.saturation_of(group)
            hyper.update(lr_factor=grad_rms.lr_factor_of(group), bounded=self._bounded)
        if squares is not None and grad_rms.takes_part(group):
            hyper["squares"] = squares
        if stochastic.takes_part(group):
            hyper["rounding"] = stochastic.random_numbers(self._every_group(), group, indices)
        self._update_group(params, grads, buffers=self._buffers(group, params), **hyper)

    def _end_update(self, groups: Iterable[dict[str, Any]]) -> None:
        """Count an update of these groups, where the random numbers of the next one depend on it."""
        rounded = [group for group in groups if stochastic.takes_part(group)]
        for group in rounded:
            stochastic.count(group)
        if rounded and not self._has_rounded:
            self._has_rounded = True
            stochastic.notice_no_effect(self.param_groups)

    def _every_group(self) -> list[dict[str, Any]]:
        """The param groups, also while DeepSpeed's ZeRO shows one of them at a time."""
        known: list[dict[str, Any]] = self.__dict__.get("_known_groups", self.param_groups)
        if known is self.param_groups:
            return known
        if any(all(group is not other for other in known) for group in self.param_groups):
            known = self._known_groups = self.param_groups
        return known

    def _begin_measuring(self) -> Literal["fixed", "first", "going on"]:
        """Begin an update, and say whether it measures the reference size: not, as the first one, or further."""
        for group in self._measuring():
            if grad_rms.MEASURED not in group:  # "auto" was written into the group
                grad_rms.join(group, self._every_group())
        measuring = self._measuring()
        if measuring:
            first = next((group["params"][0] for group in self.param_groups if group["params"]), None)
            self._measurement.begin_call(measuring, first)
        if not any(map(grad_rms.takes_part, measuring)):
            return "fixed"
        return "first" if grad_rms.size_before(measuring[0]) is None else "going on"

    def _size_before(self, group: dict[str, Any]) -> float | None:
        return grad_rms.size_before(group) if grad_rms.takes_part(group) else grad_rms.reference_size(group)

    def _measure_ahead(self, calls: list[Call]) -> list[float | None]:
        """The reference size of each of `calls`, where nothing is known yet: each group measures its own."""
        ahead = [SumOfSquares() for _ in calls]
        for squares, call in zip(ahead, calls, strict=True):
            if grad_rms.takes_part(call.group):
                self._measure_call_ahead(call, squares)
        sums = self._end_measuring(ahead, _device_of(calls))
        sizes: list[float | None] = []
        for (group, *_), (squares_of_all, count) in zip(calls, sums, strict=True):
            own = grad_rms.root_mean_square(squares_of_all, count) if count else 0.0
            usable = own if own > grad_rms.SMALLEST and math.isfinite(own) else 1.0
            sizes.append(usable if grad_rms.takes_part(group) else grad_rms.reference_size(group))
        return sizes

    def _measure_call_ahead(self, call: Call, squares: SumOfSquares) -> None:
        group, params, grads, _ = call
        functional.measure_ahead(params, grads, self._buffers(group, params), group.get("momentum", 0.0), squares)

    def _end_measuring(
        self, squares: Sequence[SumOfSquares], device: torch.device | None
    ) -> list[tuple[float, float]]:
        """Hand over what was gathered; the sums over all processes."""
        sums = grad_rms.add_up([(part.total(), part.count) for part in squares], device)
        self._measurement.end_call(self._measuring(), sums)
        return sums

    def _measuring(self) -> list[dict[str, Any]]:
        return [group for group in self._every_group() if grad_rms.takes_part(group)]

    def _buffers(self, group: dict[str, Any], params: list[Tensor]) -> Sequence[Tensor | None]:
        """The momentum buffers of `params`, made where there are none yet."""
        return [None] * len(params)

    def _with_gradients(self, group: dict[str, Any]) -> Call:
        call = Call(group, [], [], [])
        if not torch.compiler.is_compiling():
            self._check_options_in_force(group)
        for index, param in enumerate(group["params"]):
            grad = param.grad
            if grad is None:
                continue
            if group["fused"] or grad.is_sparse or type(param) not in PLAIN_TENSOR_TYPES:
                self._check_gradient(group, index, grad)
            call.params.append(param)
            call.grads.append(grad)
            call.indices.append(index)
        return call

    def _check_gradient(self, group: dict[str, Any], index: int, grad: Tensor) -> None:
        param = group["params"][index]
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

    def _check_options_in_force(self, group: dict[str, Any]) -> None:
        """Check what anyone may have written into a group since it was added."""
        # Most options are at each step what they were at the step before; lr and p are what schedules change.
        settled = tuple([group[option.name] for option in self.options if option is not LR])
        options: tuple[Option, ...] = (*self.options, P)
        if self._settled.get(id(group)) == settled:
            options = (LR, P)
        for option in options:
            value = group[option.name]
            if is_plainly_allowed(option, value):
                continue
            if isinstance(value, Tensor) and isinstance(option, Number | NumberOrWord):
                if value.numel() == 1:  # reading it would wait for its device
                    continue
            elif option is LR:  # an LR scheduler's rounding may leave it just below 0
                continue
            checked = option.check(value, " in a param group")
            if not isinstance(option, Number):
                group[option.name] = checked
        if len(options) > 2:
            _check_implementation(group, " in a param group")
            self._settled[id(group)] = settled

    def _update_group(
        self, params: list[Tensor], grads: list[Tensor], *, buffers: Sequence[Tensor | None], **hyper: Any
    ) -> None:
        """Make the step of parameters of one group, given `p` and those of `options` that a step depends on."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to update a param group")


def _device_of(calls: list[Call]) -> torch.device | None:
    return next((param.device for call in calls for param in call.params), None)


def _check_implementation(group: dict[str, Any], where: str) -> None:
    if group["fused"] and group["foreach"]:
        raise ValueError(
            f"Invalid fused{where}: True, with foreach=True. Only one of them can be True; leave both None, and "
            "the best implementation available will be used."
        )


def _describe(group: dict[str, Any], index: int) -> str:
    """A parameter in words: its name where the optimizer was given named parameters, and its shape."""
    shape = tuple(group["params"][index].shape)
    if "param_names" in group:
        return f"the parameter {group['param_names'][index]!r} of shape {shape}"
    return f"parameter {index} of shape {shape}"
