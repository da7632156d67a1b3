"""The step made in the backward pass: each parameter is updated as soon as its gradient is complete."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from threading import Lock
from weakref import ReferenceType, WeakMethod, ref

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..notices import warn_user
from .base import Call, LpOptimizer
from .grad_rms import takes_part
from .kernels.tensors import SumOfSquares

__all__ = ["StepInBackward", "remove_those_of_trainers", "step_in_backward"]


# What updates a parameter in the backward pass.
_owners: MutableMapping[Tensor, ReferenceType[StepInBackward]] = WeakIdKeyDictionary()


def _owner_of(param: Tensor) -> StepInBackward | None:
    reference = _owners.get(param)
    return None if reference is None else reference()


def step_in_backward(optimizer: LpOptimizer) -> StepInBackward:
    """Let `optimizer` make its step in the backward pass, so that no two gradients need to be held at a time.

    From now on `loss.backward()` updates each parameter as soon as its gradient is complete, and frees the gradient.
    `optimizer.step()` ends the update: call it, and the LR scheduler's `step`, after each backward pass, as before.
    The weights are those of the ordinary step, bit for bit, but for the first step with `grad_rms="auto"`: it only
    measures the gradients, and changes no weights. In a warm-up, where the first learning rate is 0, that is the same.

    What needs all gradients at a time cannot be had. Accumulation over several backward passes and more than one
    process are refused when they are found. Gradient clipping and the loss scaling of float16 are yours to leave out:
    `clip_grad_norm_` finds no gradients, and does nothing. A model compiled by torch.compile is trained rightly, but
    holds all of its gradients before it hands over the first.

    Args:
        optimizer: an LPSGD or LPSGDM. Parameters that are frozen now are updated by `step` if they are not later.

    Returns:
        A handle; its `remove()` goes back to the ordinary step.

    Raises:
        TypeError: it is another optimizer.
        ValueError: it, or another optimizer of one of its parameters, makes its step in the backward pass already.
        RuntimeError: raised by a later `backward()` that finds a parameter updated since the last `step()`, or more
            than one process.
    """
    return StepInBackward(optimizer)


def remove_those_of_trainers(params: Iterable[Tensor]) -> None:
    """Remove what Trainers attached to these parameters: a run that failed has left it behind."""
    for owner in {_owner_of(param) for param in params}:
        if owner is not None and owner.by_trainer:
            owner.remove()


class StepInBackward:
    """What [`step_in_backward`][hf_lpsgd.step_in_backward] has attached to an optimizer."""

    def __init__(self, optimizer: LpOptimizer) -> None:
        if not isinstance(optimizer, LpOptimizer):
            raise TypeError(
                f"Only LPSGD and LPSGDM can make their step in the backward pass here, not {type(optimizer).__name__}."
            )
        if optimizer._in_backward is not None:
            raise ValueError("This optimizer makes its step in the backward pass already: remove that first.")
        params = [param for group in optimizer.param_groups for param in group["params"] if param.requires_grad]
        if any(_owner_of(param) is not None for param in params):
            raise ValueError(
                "Another optimizer updates one of these parameters in the backward pass: call remove() of what "
                "step_in_backward returned for it."
            )
        self._optimizer = optimizer
        self.by_trainer = False
        self._lock = Lock()  # the backward pass runs in one thread per device
        self._updated: set[Tensor] = set()
        self._begin_anew()
        # Hooks that held this object would keep the parameters, and with them the model, in memory for ever.
        update, reference = WeakMethod(self._update_in_backward), ref(self)

        def hook(param: Tensor) -> None:
            method = update()
            if method is not None:
                method(param)

        self._handles = [param.register_post_accumulate_grad_hook(hook) for param in params]
        _owners.update(dict.fromkeys(params, reference))
        optimizer._in_backward = self

    def remove(self) -> None:
        """Go back to the ordinary step."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for param in [param for param in _owners if _owner_of(param) is self]:
            del _owners[param]
        if self._optimizer._in_backward is self:
            self._optimizer._in_backward = None

    def finish(self) -> None:
        """End the update: `optimizer.step()` calls it."""
        with self._lock:
            for group in self._optimizer.param_groups:
                for param in group["params"]:
                    if param.grad is not None:
                        self._update(param)
                        param.grad = None
            if self._updated:
                self._end()
            self._begin_anew()

    def _begin_anew(self) -> None:
        self._updated.clear()
        self._places: dict[Tensor, tuple[int, int]] = {}
        self._squares: dict[int, SumOfSquares] = {}

    @torch.no_grad()
    def _update_in_backward(self, param: Tensor) -> None:
        with self._lock:
            if param in self._updated:
                raise RuntimeError(
                    f"A parameter of shape {tuple(param.shape)} has got a second gradient since the last "
                    "optimizer.step(). The step is made in the backward pass, so gradients cannot be accumulated: "
                    "call optimizer.step() after each backward(), also after one that failed, and use a "
                    "gradient_accumulation_steps of 1. Reentrant gradient checkpointing gives a weight that several "
                    "of its segments use several gradients: leave it out."
                )
            self._update(param)
            param.grad = None

    def _update(self, param: Tensor) -> None:
        optimizer = self._optimizer
        if not self._updated:
            self._begin()
        if param not in self._places:  # its group was added since the update began
            self._find_places()
        self._updated.add(param)
        group_index, index = self._places[param]
        group, grad = optimizer.param_groups[group_index], param.grad
        assert grad is not None
        optimizer._check_gradient(group, index, grad)
        call = Call(group, [param], [grad], [index])
        if self._stage == "first" and takes_part(group):
            squares = self._squares.setdefault(group_index, SumOfSquares())
            optimizer._measure_call_ahead(call, squares)
            optimizer._update_call(call, 1.0, None, lr=0.0)
        else:
            going_on = self._squares.setdefault(0, SumOfSquares()) if self._stage == "going on" else None
            optimizer._update_call(call, optimizer._size_before(group), going_on)

    def _begin(self) -> None:
        optimizer = self._optimizer
        runs = torch.distributed.is_available() and torch.distributed.is_initialized()
        if runs and torch.distributed.get_world_size() > 1:
            raise RuntimeError(
                f"A step in the backward pass cannot train with {torch.distributed.get_world_size()} processes: they "
                "average their gradients afterwards. Use the ordinary step, or one process."
            )
        if optimizer._before_update is not None:
            optimizer._before_update()
        optimizer._notice_no_tie()
        for group in optimizer.param_groups:
            optimizer._check_options_in_force(group)
        self._find_places()
        self._stage = optimizer._begin_measuring()
        measuring = [group for group in optimizer.param_groups if takes_part(group)]
        if self._stage == "first" and any(float(group["lr"]) != 0 for group in measuring):
            warn_user(
                "The first step measures the gradients for grad_rms='auto', and changes no weights. With a "
                "warm-up, whose first learning rate is 0, no step is lost by it."
            )

    def _find_places(self) -> None:
        for number, group in enumerate(self._optimizer.param_groups):
            self._places.update({param: (number, index) for index, param in enumerate(group["params"])})

    def _end(self) -> None:
        optimizer = self._optimizer
        touched = {self._places[param][0] for param in self._updated}
        optimizer._end_update([optimizer.param_groups[number] for number in sorted(touched)])
        if self._squares:
            device = next(iter(self._updated)).device
            optimizer._end_measuring(list(self._squares.values()), device)
