"""The callback that ties p to the Trainer's LR scheduler and logs it."""

from __future__ import annotations

import logging
from typing import Any

from accelerate.state import AcceleratorState
from transformers.trainer_callback import TrainerCallback, TrainerState
from transformers.trainer_utils import has_length
from transformers.training_args import TrainingArguments

from ..lr_schedulers import steps_made, unwrap_scheduler
from ..optim import OPTIMIZERS
from ..optim.base import LpOptimizer
from ..optim.layerwise import StepInBackward, remove_those_of_trainers
from ..optim.measurement import reference_size
from ..processes import check_processes, engine_left_out
from ..schedules import PScheduleTie, current_tie, tie_p_schedule
from ..wrappers import partitions_of, unwrap_optimizer
from .deepspeed import fit_deepspeed_config
from .layerwise import check_layerwise
from .optim_args import OptimArgs, name_of, parse_optim_args, validate_optim_args

logger = logging.getLogger(__name__)


class LpScheduleCallback(TrainerCallback):
    """Ties p to the LR scheduler when training begins, and logs it wherever `learning_rate` is logged.

    It logs `grad_rms` too, where there is one; while that is measured, the mean so far. Every Trainer has it once
    `hf_lpsgd` is imported. It does nothing for other optimizers.
    """

    def on_init_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the arguments, before data and time are spent."""
        if validate_optim_args(args) is not None:
            fit_deepspeed_config(args)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Tie p to the LR scheduler, and let a layerwise optimizer make its step in the backward pass."""
        model, optimizer, lr_scheduler = kwargs.get("model"), kwargs.get("optimizer"), kwargs.get("lr_scheduler")
        remove_those_of_trainers(model.parameters() if model is not None else ())
        base, parsed = unwrap_optimizer(optimizer), parse_optim_args(args)
        if parsed is not None:
            _check_class(base, name_of(args.optim))
            _compare_with_requested(base, parsed, state)
        elif isinstance(base, LpOptimizer):
            check_processes(args.world_size)
        else:
            return
        _check_engine(args, state)
        base.partitions = partitions_of(optimizer, model)
        tie = current_tie(base)
        course = None if tie is None else (tie.schedule, tie.granularity)
        if parsed is not None:
            course = parsed.p_schedule, parsed.p_granularity
        if tie is not None and not tie.by_trainer:
            _check_users_tie(tie, lr_scheduler)
            if parsed is not None and "p_schedule" in (args.optim_args or "") and parsed.p_schedule != tie.schedule:
                ignored = f"p_schedule={parsed.p_schedule} of --optim_args is ignored"
                _warn(state, f"The p schedule of tie_p_schedule is in force: {ignored}.")
        elif course is None:
            _warn(
                state,
                f"The {type(base).__name__} given to this Trainer has no p schedule, so p stays at p_max. Choose the "
                "optimizer by --optim, or call hf_lpsgd.tie_p_schedule.",
            )
        else:  # which an earlier Trainer may have set
            schedule, granularity = course
            by_epochs = granularity == "epoch" and schedule != "constant"
            tie = tie_p_schedule(
                optimizer,
                lr_scheduler,
                schedule,
                num_training_steps=state.max_steps,
                num_warmup_steps=args.get_warmup_steps(state.max_steps),
                granularity=granularity,
                steps_per_epoch=_updates_per_epoch(args, kwargs.get("train_dataloader")) if by_epochs else None,
            )
            tie.by_trainer = True
            if state.global_step > 0 and steps_made(tie.lr_scheduler) == 0:
                _warn(
                    state,
                    f"The checkpoint of step {state.global_step} held no state of the optimizer and the LR scheduler, "
                    "so momentum, learning rate and p begin anew. Resume from a checkpoint that has optimizer.pt and "
                    "scheduler.pt, which save_only_model leaves out, or start a new run from its weights.",
                )
        if parsed is not None and OPTIMIZERS[name_of(args.optim)].ordinary is not None:
            StepInBackward(base, by_trainer=True).is_armed = False
        elif base.backward_step is not None:
            check_layerwise(args, "An optimizer given to step_in_backward", "leave out step_in_backward")

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the backward pass of this training step update the parameters."""
        for step in _steps_in_backward(kwargs):
            step.is_armed = True

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave later backward passes alone, such as those of an evaluation."""
        for step in _steps_in_backward(kwargs):
            step.is_armed = False

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Go back to the ordinary step."""
        for step in _steps_in_backward(kwargs):
            step.remove()

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Put p and grad_rms into the logs of a training step, and into the history."""
        base, logs = unwrap_optimizer(kwargs.get("optimizer")), kwargs.get("logs")
        if not isinstance(base, LpOptimizer) or logs is None or "learning_rate" not in logs:
            return
        numbers = {"p": base.param_groups[0]["p"], "grad_rms": reference_size(base.param_groups[0])}
        # The callbacks that come later get `logs`; the history has a copy, made by the Trainer before.
        for entry in (logs, *state.log_history[-1:]):
            if "learning_rate" not in entry:
                continue
            entry.update({name: number for name, number in numbers.items() if number is not None})
            if base.backward_step is not None:  # no gradients are left to take the norm of
                entry.pop("grad_norm", None)


def _warn(state: TrainerState, message: str) -> None:
    if state.is_world_process_zero:
        logger.warning(message)


def _updates_per_epoch(args: TrainingArguments, train_dataloader: Any) -> int:
    if not has_length(train_dataloader):
        raise ValueError(
            "p_granularity=epoch needs the length of an epoch, and this training dataset has no length. "
            "Use p_granularity=step."
        )
    return max(-(-len(train_dataloader) // args.gradient_accumulation_steps), 1)


def _steps_in_backward(event: dict[str, Any]) -> list[StepInBackward]:
    """Return the step in the backward pass that this callback has attached to the optimizer, if it has one."""
    step = getattr(unwrap_optimizer(event.get("optimizer")), "backward_step", None)
    return [step] if isinstance(step, StepInBackward) and step.by_trainer else []


def _check_class(optimizer: Any, optim: str) -> None:
    if not isinstance(optimizer, OPTIMIZERS[optim].cls):
        has_no_p = "" if isinstance(optimizer, LpOptimizer) else ", which has no p"
        raise ValueError(
            f"--optim {optim} was requested, but the Trainer trains with {type(optimizer).__name__}{has_no_p}. Do not "
            "give the Trainer an optimizer of its own, neither as an object nor in a DeepSpeed config nor by "
            "create_optimizer."
        )


def _compare_with_requested(optimizer: LpOptimizer, parsed: OptimArgs, state: TrainerState) -> None:
    """Warn of the `optim_args` of which the optimizer, which someone else may have made, knows nothing."""
    given = [optimizer.defaults, *optimizer.param_groups]  # a resume has warned of the groups that it replaces
    left_out = [
        f"{name} is {optimizer.param_groups[0][name]}, not {value} as requested"
        for name, value in parsed.optimizer_kwargs.items()
        if all(options.get(name) != value for options in given)
    ]
    if left_out:
        _warn(
            state,
            f"The {type(optimizer).__name__} of this Trainer was not made from --optim_args: {'; '.join(left_out)}. "
            "Give these options where it is made, or do not give the Trainer an optimizer of its own.",
        )


def _check_users_tie(tie: PScheduleTie, lr_scheduler: Any) -> None:
    if not tie.is_moved_by(lr_scheduler):
        raise ValueError(
            f"p is tied to a {type(tie.lr_scheduler).__name__} that this Trainer does not step, so p would never "
            f"move: the Trainer steps a {type(unwrap_scheduler(lr_scheduler)).__name__} of its own. Give it both, as "
            "optimizers=(optimizer, lr_scheduler), or leave out tie_p_schedule and choose --optim and --optim_args."
        )


def _check_engine(args: TrainingArguments, state: TrainerState) -> None:
    in_use = AcceleratorState().distributed_type.value
    left_out = engine_left_out(in_use)
    if left_out is not None:
        where = "on a CPU" if args.device.type == "cpu" else "where there is one process"
        _warn(
            state,
            f"The launcher requested {left_out}, and this run trains with {in_use}: Accelerate leaves {left_out} out "
            f"{where}. The step is the same; the memory per process is not.",
        )
