"""The step made in the backward pass: each parameter is updated as soon as its gradient is complete."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from threading import Lock
from weakref import ReferenceType, WeakMethod, ref

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .base import LpOptimizer
from .update import Call, Update, calls_with_gradients, check_gradients

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
    The weights are those of the ordinary step, bit for bit.

    Accumulation over several backward passes and more than one process are refused when they are found. Leave out
    gradient clipping and the loss scaling of float16: `clip_grad_norm_` finds no gradients, and does nothing. A model
    compiled by torch.compile is trained rightly, but holds all of its gradients before it hands over the first.

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
    """What [`step_in_backward`][hf_lpsgd.step_in_backward] has attached to an optimizer.

    Attributes:
        by_trainer: whether the Trainer's callback attached it.
        is_armed: whether a backward pass makes the step; if not, gradients are left as they are.
    """

    def __init__(self, optimizer: LpOptimizer, *, by_trainer: bool = False) -> None:
        if not isinstance(optimizer, LpOptimizer):
            raise TypeError(
                f"Only LPSGD and LPSGDM can make their step in the backward pass here, not {type(optimizer).__name__}."
            )
        if optimizer.backward_step is not None:
            raise ValueError("This optimizer makes its step in the backward pass already: remove that first.")
        params = [param for group in optimizer.param_groups for param in group["params"] if param.requires_grad]
        if any(_owner_of(param) is not None for param in params):
            raise ValueError(
                "Another optimizer updates one of these parameters in the backward pass: call remove() of what "
                "step_in_backward returned for it."
            )
        self.by_trainer = by_trainer
        self.is_armed = True
        self._optimizer = optimizer
        self._lock = Lock()  # the backward pass runs in one thread per device
        self._update: Update | None = None
        self._updated: set[Tensor] = set()
        self._places: dict[Tensor, tuple[int, int]] = {}
        # Hooks that held this object would keep the parameters, and with them the model, in memory for ever.
        update, reference = WeakMethod(self._update_in_backward), ref(self)

        def hook(param: Tensor) -> None:
            method = update()
            if method is not None:
                method(param)

        self._handles = [param.register_post_accumulate_grad_hook(hook) for param in params]
        _owners.update(dict.fromkeys(params, reference))
        optimizer.backward_step = self

    def remove(self) -> None:
        """Go back to the ordinary step."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for param in [param for param in _owners if _owner_of(param) is self]:
            del _owners[param]
        if self._optimizer.backward_step is self:
            self._optimizer.backward_step = None

    def finish(self) -> None:
        """End the update: `optimizer.step()` calls it."""
        with self._lock:
            calls = calls_with_gradients(self._optimizer.param_groups, type(self._optimizer).__name__)
            for param in [param for call in calls for param in call.params]:
                self._apply(param)
            if self._update is not None:
                self._update.end()
            self.discard()

    def discard(self) -> None:
        """Forget the update that has begun: another state was loaded."""
        self._update = None
        self._updated.clear()

    @torch.no_grad()
    def _update_in_backward(self, param: Tensor) -> None:
        if not self.is_armed:
            return
        with self._lock:
            if param in self._updated:
                param.grad = None  # so that the next step does not apply it
                raise RuntimeError(
                    f"A parameter of shape {tuple(param.shape)} has got a second gradient since the last "
                    "optimizer.step(). The step is made in the backward pass, so gradients cannot be accumulated: "
                    "call optimizer.step() after each backward(), also after one that failed, and use a "
                    "gradient_accumulation_steps of 1. Reentrant gradient checkpointing gives a weight that several "
                    "of its segments use several gradients: leave it out."
                )
            self._apply(param)

    def _apply(self, param: Tensor) -> None:
        """Update a parameter, and free its gradient."""
        optimizer = self._optimizer
        if self._update is None:
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                processes = torch.distributed.get_world_size()
                if processes > 1:
                    raise RuntimeError(
                        f"A step in the backward pass cannot train with {processes} processes: they average their "
                        "gradients afterwards. Use the ordinary step, or one process."
                    )
            self._update = optimizer.begin_update()
            self._find_places()
        if param not in self._places:  # its group was added since the update began
            self._find_places()
        group_index, index = self._places[param]
        grad = param.grad
        assert grad is not None
        call = Call(optimizer.param_groups[group_index], [param], [grad], [index])
        check_gradients(call, type(optimizer).__name__)
        self._updated.add(param)
        try:
            self._update.apply(call)
        finally:
            param.grad = None  # also after an error: what was updated in part must not be updated again

    def _find_places(self) -> None:
        groups = enumerate(self._optimizer.param_groups)
        self._places = {
            param: (place, index) for place, group in groups for index, param in enumerate(group["params"])
        }
