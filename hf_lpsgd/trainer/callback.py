"""The callback that ties p to the Trainer's LR scheduler and logs it."""

from __future__ import annotations

import sys
from threading import get_ident
from types import FrameType
from typing import Any

from accelerate.logging import get_logger
from transformers.trainer_callback import TrainerCallback, TrainerState
from transformers.trainer_utils import has_length
from transformers.training_args import TrainingArguments

from ..lr_schedulers import steps_made
from ..optim import OPTIMIZERS
from ..optim.base import LpOptimizer
from ..optim.layerwise import StepInBackward
from ..optim.measurement import reference_size
from ..processes import check_processes
from ..schedules import current_tie, tie_p_schedule
from ..wrappers import partitions_of, unwrap_optimizer, unwrap_scheduler
from .checks import check_layerwise, fit_deepspeed_config
from .optim_args import OptimArgs, name_of, validate_optim_args

logger = get_logger(__name__)  # of the first process alone

_CALLBACKS = TrainerCallback.__module__  # which calls those of all callbacks


class TrainingLoop:
    """The training loop that calls this, looked for on the stack: no event tells that an exception has ended it."""

    def __init__(self) -> None:
        self.is_in_step, self._thread = False, get_ident()
        self.frame: FrameType | None = sys._getframe()
        while self.frame is not None and self.frame.f_globals.get("__name__") in (__name__, _CALLBACKS):
            self.frame = self.frame.f_back

    def calls(self) -> list[str | None] | None:
        """Return the modules of the calls that the loop is in; None if it has ended."""
        # Not the stack of this thread: on a GPU, gradients arrive in a thread of autograd's own.
        frame, modules = sys._current_frames().get(self._thread), []
        while frame is not None and frame is not self.frame:
            modules.append(frame.f_globals.get("__name__"))
            frame = frame.f_back
        return None if frame is None else modules

    def is_stepping(self) -> bool:
        """Say whether a backward pass that runs now is that of a training step, and not one of a callback."""
        return self.is_in_step and _CALLBACKS not in (self.calls() or [_CALLBACKS])


class LpScheduleCallback(TrainerCallback):
    """Ties p to the LR scheduler when training begins, and logs it wherever `learning_rate` is logged.

    It logs `grad_rms` too, where there is one; while that is measured, the mean so far. Every Trainer has it once
    `hf_lpsgd` is imported. It does nothing for other optimizers.
    """

    _step_in_backward: StepInBackward | None = None

    def on_init_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the arguments, before data and time are spent."""
        if validate_optim_args(args) is not None:
            fit_deepspeed_config(args, name_of(args.optim))

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Tie p to the LR scheduler, and let a layerwise optimizer make its step in the backward pass."""
        model, base = kwargs.get("model"), unwrap_optimizer(kwargs.get("optimizer"))
        self._step_in_backward = None  # that of a training that an exception has ended
        requested = validate_optim_args(args)  # which a search of hyperparameters may have changed
        if requested is not None:
            _check_optimizer(base, name_of(args.optim), requested)
        elif isinstance(base, LpOptimizer):
            check_processes(args.world_size)
        else:
            return
        base.partitions = partitions_of(kwargs.get("optimizer"), model)
        _tie(args, state, requested, kwargs)
        if requested is not None and OPTIMIZERS[name_of(args.optim)].ordinary is not None:
            StepInBackward(base, by_trainer=True)
        elif base.backward_step is not None and not base.backward_step.remove_if_over():
            check_layerwise(args, "An optimizer given to step_in_backward", "leave out step_in_backward")
        self._step_in_backward = base.backward_step
        if self._step_in_backward is not None:
            self._step_in_backward.training = TrainingLoop()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the backward pass of this training step update the parameters."""
        if self._step_in_backward is not None:
            self._step_in_backward.training.is_in_step = True

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave later backward passes alone, such as those of an evaluation."""
        if self._step_in_backward is not None:
            self._step_in_backward.training.is_in_step = False

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Go back to the ordinary step."""
        if self._step_in_backward is not None:
            self._step_in_backward.training.frame = None  # which held all that the loop knew
            self._step_in_backward.remove_if_over()
            self._step_in_backward = None

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Put p and grad_rms into the logs of a training step, and into the history."""
        base, logs = unwrap_optimizer(kwargs.get("optimizer")), kwargs.get("logs")
        if not isinstance(base, LpOptimizer) or logs is None or "learning_rate" not in logs:
            return
        numbers = {"p": base.param_groups[0]["p"], "grad_rms": reference_size(base.param_groups[0])}
        # The callbacks that come later get `logs`; the history has a copy, made by the Trainer before.
        for entry in (logs, *state.log_history[-1:]):
            if "learning_rate" in entry:
                entry.update({name: number for name, number in numbers.items() if number is not None})
                if base.backward_step is not None:  # no gradients are left to take the norm of
                    entry.pop("grad_norm", None)


def _check_optimizer(optimizer: Any, optim: str, requested: OptimArgs) -> None:
    """Fail where the optimizer is not that of `--optim`, and warn of the `optim_args` of which it knows nothing."""
    if not isinstance(optimizer, OPTIMIZERS[optim].cls):
        raise ValueError(
            f"--optim {optim} was requested, but the Trainer trains with {type(optimizer).__name__}. Do not give it "
            "an optimizer of its own, neither as an object nor in a DeepSpeed config nor by create_optimizer."
        )
    given = [optimizer.defaults, *optimizer.param_groups]  # a resume has warned of the groups that it replaces
    left_out = [
        f"{name} is {optimizer.param_groups[0][name]}, not {value} as requested"
        for name, value in requested.optimizer_kwargs.items()
        if all(options.get(name) != value for options in given)
    ]
    if left_out:
        logger.warning(
            f"The {type(optimizer).__name__} of this Trainer was not made from --optim_args: {'; '.join(left_out)}. "
            "Give these options where it is made, or do not give the Trainer an optimizer of its own."
        )


def _tie(args: TrainingArguments, state: TrainerState, requested: OptimArgs | None, event: dict[str, Any]) -> None:
    """Tie p as requested, or else as for an earlier Trainer; a tie that the user made stays."""
    optimizer, lr_scheduler, batches = event["optimizer"], event["lr_scheduler"], event["train_dataloader"]
    tie = current_tie(optimizer)
    if tie is not None and not tie.by_trainer:
        if not tie.is_moved_by(lr_scheduler):
            raise ValueError(
                f"p is tied to a {type(tie.lr_scheduler).__name__} that this Trainer does not step, so p would never "
                f"move: it steps a {type(unwrap_scheduler(lr_scheduler)).__name__} of its own. Give it both, as "
                "optimizers=(optimizer, lr_scheduler), or leave out tie_p_schedule, and use --optim and --optim_args."
            )
        given = requested if requested is not None and "p_schedule" in (args.optim_args or "") else None
        if given is not None and given.p_schedule != tie.schedule:
            logger.warning(f"p_schedule={given.p_schedule} is ignored: that of tie_p_schedule is in force.")
        return
    if requested is not None:
        schedule, granularity = requested.p_schedule, requested.p_granularity
    elif tie is not None:
        schedule, granularity = tie.schedule, tie.granularity
    else:
        return  # p is as the user made the optimizer, which gives a notice where p stays and the rate falls
    steps_per_epoch = None
    if granularity == "epoch" and schedule != "constant":
        if not has_length(batches):
            raise ValueError("p_granularity=epoch, and this training dataset has no length. Use p_granularity=step.")
        steps_per_epoch = max(-(-len(batches) // args.gradient_accumulation_steps), 1)
    tie = tie_p_schedule(
        optimizer,
        lr_scheduler,
        schedule,
        num_training_steps=max(state.max_steps, 1),  # 0 is a run without a step, or with one (--max_steps 0)
        num_warmup_steps=state.max_steps and args.get_warmup_steps(state.max_steps),
        granularity=granularity,
        steps_per_epoch=steps_per_epoch,
    )
    tie.by_trainer = True
    if state.global_step > 0 and steps_made(tie.lr_scheduler) == 0:
        logger.warning(
            f"The checkpoint of step {state.global_step} held no state of the optimizer and the LR scheduler, so "
            "momentum, learning rate and p begin anew. Resume from one with optimizer.pt and scheduler.pt, which "
            "save_only_model leaves out, or start a new run from its weights."
        )
