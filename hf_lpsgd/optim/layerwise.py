"""The step made in the backward pass: each parameter is updated as soon as its gradient is complete."""

from __future__ import annotations

from contextlib import AbstractContextManager
from threading import Lock
from typing import Any
from weakref import WeakMethod, WeakSet

import torch
from torch import Tensor, distributed

from .base import LpOptimizer
from .kernels.choice import uncompiled
from .update import Call, Update, calls_with_gradients, check_gradients

_attached: WeakSet[StepInBackward] = WeakSet()


def step_in_backward(optimizer: LpOptimizer) -> StepInBackward:
    """Let `optimizer` make its step in the backward pass, so that no two gradients need to be held at a time.

    From now on `loss.backward()` updates each parameter as soon as its gradient is complete, and frees the gradient.
    `optimizer.step()` ends the update: call it, and the LR scheduler's `step`, after each backward pass, as before.
    The weights are those of the ordinary step, bit for bit. In a loop of your own every backward pass makes a step,
    until the handle is removed; `with step_in_backward(optimizer):` removes it however the loop ends. In a Trainer,
    and after it, only that of a training step does.

    Accumulation over several backward passes is refused when it is found, and so are several processes, but for those
    of FSDP2: call `fully_shard` before you make the optimizer. Leave out gradient clipping and the loss scaling of
    float16: `clip_grad_norm_` finds no gradients, and does nothing. A model compiled by torch.compile is trained
    rightly, but holds all of its gradients before it hands over the first.

    Args:
        optimizer: an LPSGD or LPSGDM. Parameters that are frozen now are updated by `step` if they are not later.

    Returns:
        A handle; its `remove()`, or the end of its `with` block, goes back to the ordinary step.

    Raises:
        TypeError: it is another optimizer.
        ValueError: it, or another optimizer of one of its parameters, makes its step in the backward pass already.
        RuntimeError: raised by a later `backward()` that finds a parameter updated since the last `step()`, or
            processes that average gradients afterwards, as those of DDP.
    """
    return StepInBackward(optimizer)


class StepInBackward(AbstractContextManager["StepInBackward"]):
    """What [`step_in_backward`][hf_lpsgd.step_in_backward] has attached to an optimizer."""

    def __init__(self, optimizer: LpOptimizer, *, by_trainer: bool = False) -> None:
        if not isinstance(optimizer, LpOptimizer):
            raise TypeError(f"Only LPSGD and LPSGDM can step in the backward pass, not {type(optimizer).__name__}.")
        params = [param for group in optimizer.param_groups for param in group["params"] if param.requires_grad]
        for step in list(_attached):
            if not step._handles.keys().isdisjoint(params) and not step.remove_if_over():
                one = "This" if step is optimizer.backward_step else "Another"
                raise ValueError(f"{one} optimizer updates these parameters in the backward pass: remove that first.")
        self.by_trainer = by_trainer  # whether the Trainer's callback attached it
        self.training: Any = None  # a loop whose steps alone are made in the backward pass; None for every one
        self._optimizer = optimizer
        self._lock = Lock()  # the backward pass runs in one thread per device
        self._update: Update | None = None
        self._waiting: dict[Tensor, tuple[dict[str, Any], int]] = {}  # for their gradients: their groups and places
        # Hooks that held this object would keep the parameters, and with them the model, in memory for ever.
        update = WeakMethod(self._update_in_backward)

        def hook(param: Tensor) -> None:
            if (method := update()) is not None:
                method(param)

        self._handles: dict[Tensor, Any] = {param: param.register_post_accumulate_grad_hook(hook) for param in params}
        _attached.add(self)
        optimizer.backward_step = self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Go back to the ordinary step."""
        while self._handles:
            self._handles.popitem()[1].remove()
        if self._optimizer.backward_step is self:
            self._optimizer.backward_step = None

    def remove_if_over(self) -> bool:
        """Remove what a Trainer attached if its training has ended, as by an exception, and say whether it was so."""
        if self.training is None or self.training.calls() is not None:
            return False
        self.discard()
        if self.by_trainer:
            self.remove()
        return self.by_trainer

    def finish(self) -> None:
        """End the update: `optimizer.step()` calls it."""
        with self._lock:
            calls = calls_with_gradients(self._optimizer.param_groups, type(self._optimizer).__name__)
            if self._update is None and self._optimizer.only_makes_state(calls):
                return
            for call in calls:
                self._begun().apply(call)
                for param in call.params:
                    param.grad = None
            if self._update is not None:
                self._update.end()
            self.discard()

    def discard(self) -> None:
        """Forget the update that has begun: another state was loaded, or an exception has ended the training."""
        self._update = None

    @uncompiled  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _update_in_backward(self, param: Tensor) -> None:
        if self.training is not None and not self.training.is_stepping():
            self.remove_if_over()
            return  # the gradient is left as it is
        with self._lock:
            update = self._begun()
            if param not in self._waiting:
                param.grad = None  # so that the next step does not apply it
                raise RuntimeError(
                    f"A parameter of shape {tuple(param.shape)} has got a second gradient since the last "
                    "optimizer.step(). By a step in the backward pass, gradients cannot be accumulated: call "
                    "optimizer.step() after each backward(), also after one that failed, and leave out reentrant "
                    "gradient checkpointing."
                )
            group, index = self._waiting[param]
            assert param.grad is not None
            call = Call(group, [param], [param.grad], [index])
            check_gradients(call, type(self._optimizer).__name__)
            del self._waiting[param]
            try:
                update.apply(call)
            finally:
                param.grad = None  # also after an error: what was updated in part must not be updated again

    def _begun(self) -> Update:
        """Return the present update; begin it if there is none."""
        if self._update is None:
            size = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
            meshes = [getattr(param, "device_mesh", None) for param in self._handles]
            if size > 1 and any(mesh is None or mesh.size() != size for mesh in meshes):
                raise RuntimeError(
                    f"A step in the backward pass cannot train with {size} processes: they average their gradients "
                    "afterwards. Use the ordinary step, FSDP2 (fully_shard), or one process."
                )
            self._update = self._optimizer.begin_update()
            groups = self._optimizer.param_groups
            self._waiting = {param: (group, index) for group in groups for index, param in enumerate(group["params"])}
        return self._update
