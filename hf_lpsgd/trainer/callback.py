"""The callback that ties p to the Trainer's LR scheduler and logs it."""

from __future__ import annotations

import logging
from typing import Any, cast

from accelerate.state import AcceleratorState
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from ..lr_schedulers import counts_evaluations, scheduler_step, tells_steps, unwrap_scheduler
from ..optim import OPTIMIZERS
from ..optim.base import LpOptimizer
from ..optim.grad_rms import reference_size
from ..optim.layerwise import remove_those_of_trainers
from ..processes import check_processes, engine_left_out
from ..schedules import Granularity, PSchedule, PScheduleTie, current_tie, tie_p_schedule, unwrap_optimizer
from .deepspeed import fit_deepspeed_config
from .layerwise import attach, check_layerwise, detach
from .optim_args import OptimArgs, name_of, validate_optim_args

logger = logging.getLogger(__name__)

# What a checkpoint tells of the tie, under the name of the flag or of the key of optim_args that sets it.
_TOLD = {
    "p_schedule": "schedule",
    "p_granularity": "granularity",
    "the length of the run in steps": "num_training_steps",
    "the warm-up in steps": "num_warmup_steps",
}


class LpScheduleCallback(TrainerCallback):
    """Ties p to the LR scheduler when training begins, and logs it wherever `learning_rate` is logged.

    Beside it, it logs `grad_rms`, where there is one: while it is measured, the running mean.

    Every Trainer has it once `hf_lpsgd` is imported. It does nothing for other optimizers.
    """

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if validate_optim_args(args) is not None:
            fit_deepspeed_config(args)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        model = kwargs.get("model")
        remove_those_of_trainers(model.parameters() if model is not None else ())
        base = unwrap_optimizer(optimizer)
        parsed = validate_optim_args(args)
        if parsed is None and not isinstance(base, LpOptimizer):
            return
        if parsed is not None and not isinstance(base, OPTIMIZERS[name_of(args.optim)].cls):
            raise ValueError(
                f"--optim {name_of(args.optim)} was asked for, but the Trainer trains with {type(base).__name__}"
                f"{'' if isinstance(base, LpOptimizer) else ', which has no p'}. Do not give the Trainer an optimizer "
                "of its own, neither as an object nor in a DeepSpeed config nor by create_optimizer."
            )
        if parsed is not None:
            _compare_with_asked(base, parsed)
        check_processes(args.world_size)
        in_use = AcceleratorState().distributed_type.value
        left_out = engine_left_out(in_use)
        if left_out is not None and state.is_world_process_zero:
            logger.warning(
                "The launcher asked for %s, and this run trains with %s: Accelerate leaves %s out on a CPU. The step "
                "is the same; the memory per process is not.",
                left_out,
                in_use,
                left_out,
            )

        def tie_to_the_trainer(schedule: PSchedule, granularity: Granularity) -> PScheduleTie:
            by_epochs = granularity == "epoch" and schedule != "constant"
            tie = tie_p_schedule(
                base,
                lr_scheduler,
                schedule,
                num_training_steps=state.max_steps,
                num_warmup_steps=args.get_warmup_steps(state.max_steps),
                granularity=granularity,
                steps_per_epoch=_update_steps_per_epoch(args, train_dataloader) if by_epochs else None,
            )
            tie.by_trainer = True
            return tie

        tie = current_tie(base)
        if tie is not None and not tie.by_trainer:
            _check_users_tie(tie, lr_scheduler)
            if parsed is not None:
                logger.warning(
                    "Keeping the p schedule already attached; ignoring p_schedule=%s of --optim_args.",
                    parsed.p_schedule,
                )
        elif parsed is not None:
            tie = tie_to_the_trainer(parsed.p_schedule, parsed.p_granularity)
        elif tie is not None:  # the optimizer of an earlier Trainer, which tied it
            tie = tie_to_the_trainer(tie.schedule, tie.granularity)
        else:
            logger.warning(
                "The %s given to this Trainer has no p schedule, so p stays at p_max. "
                "Choose the optimizer by --optim, or call hf_lpsgd.tie_p_schedule.",
                type(base).__name__,
            )
        if tie is not None:
            _compare_with_checkpoint(tie, base, state)
        if _is_layerwise(args):
            attach(base)
        elif base._in_backward is not None:
            check_layerwise(args, "An optimizer given to step_in_backward", "leave out step_in_backward")

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        base = unwrap_optimizer(optimizer)
        if isinstance(base, LpOptimizer) and _is_layerwise(args):
            detach(base)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        base = unwrap_optimizer(optimizer)
        if not isinstance(base, LpOptimizer) or logs is None or "learning_rate" not in logs:
            return
        if base._in_backward is not None:  # no gradients are left to take the norm of
            logs.pop("grad_norm", None)
            if state.log_history and "learning_rate" in state.log_history[-1]:
                state.log_history[-1].pop("grad_norm", None)
        group = base.param_groups[0]
        more = {"p": group["p"]}
        size = reference_size(group)
        if size is not None:
            more["grad_rms"] = size
        add_to_logs(logs, state, more)


def _is_layerwise(args: TrainingArguments) -> bool:
    record = OPTIMIZERS.get(name_of(args.optim))
    return record is not None and record.ordinary is not None


def add_to_logs(logs: dict[str, float], state: TrainerState, more: dict[str, float]) -> None:
    """Put `more` into the logs of a training step, and into the history, where the Trainer has put a copy of them."""
    logs.update(more)  # for the callbacks that come later
    if state.log_history and "learning_rate" in state.log_history[-1]:
        state.log_history[-1].update(more)


def _check_users_tie(tie: PScheduleTie, lr_scheduler: Any) -> None:
    if not tie.is_moved_by(lr_scheduler):
        raise ValueError(
            f"p is tied to a {type(tie.lr_scheduler).__name__} that this Trainer does not step, so p would never "
            f"move: the Trainer steps a {type(unwrap_scheduler(lr_scheduler)).__name__} of its own. Give it both, as "
            "optimizers=(optimizer, lr_scheduler), or leave out tie_p_schedule and choose --optim and --optim_args."
        )


def _compare_with_asked(optimizer: LpOptimizer, parsed: OptimArgs) -> None:
    """Warn of the `optim_args` of which the optimizer, which someone else may have made, knows nothing."""
    given = [optimizer.defaults, *optimizer.param_groups]  # a resume has told of the groups that it replaces
    left_out = [
        f"{name} is {optimizer.param_groups[0][name]}, not {asked} as asked for"
        for name, asked in parsed.optimizer_kwargs.items()
        if all(options.get(name) != asked for options in given)
    ]
    if left_out:
        logger.warning(
            "The %s of this Trainer was not made from --optim_args: %s. Give these options where it is made, or do "
            "not give the Trainer an optimizer of its own.",
            type(optimizer).__name__,
            "; ".join(left_out),
        )


def _compare_with_checkpoint(tie: PScheduleTie, optimizer: LpOptimizer, state: TrainerState) -> None:
    """Leave in the Trainer's state what its checkpoints are to tell, and warn where the one loaded tells otherwise."""
    name = LpScheduleCallback.__name__
    if tie.by_trainer and state.global_step > 0 and _is_fresh(tie.lr_scheduler):
        logger.warning(
            "The checkpoint of step %s held no state of the optimizer and the LR scheduler, so momentum, learning "
            "rate and p begin anew. Resume from a checkpoint that has optimizer.pt and scheduler.pt, which "
            "save_only_model leaves out, or start a new run from its weights.",
            state.global_step,
        )
    now = {attribute: getattr(tie, attribute) for attribute in _TOLD.values()}
    states = cast("dict[str, Any]", state.stateful_callbacks)
    saved = states.get(name) if state.global_step > 0 else None
    states[name] = {"args": {}, "attributes": now}
    before = saved["attributes"] if isinstance(saved, dict) and isinstance(saved.get("attributes"), dict) else {}
    changed = [
        f"{told} is {now[attribute]}, and was {before[attribute]}"
        for told, attribute in _TOLD.items()
        if attribute in before and before[attribute] != now[attribute]
    ]
    loaded = optimizer._take_loaded_p() if before else None
    if changed:
        course = f", and p goes from {loaded[0]:.4g} to {tie.get_p()[0]:.4g} at once" if loaded else ""
        logger.warning(
            "The checkpoint was written by a run with another course of p: %s%s. What is asked for now is in force. "
            "To go on as that run would, give its values; to train on with new ones, start a new run from the "
            "weights of the checkpoint.",
            "; ".join(changed),
            course,
        )


def _is_fresh(lr_scheduler: Any) -> bool:
    counts_steps = tells_steps(lr_scheduler) and not counts_evaluations(lr_scheduler)
    return counts_steps and scheduler_step(lr_scheduler) == 0


def _update_steps_per_epoch(args: TrainingArguments, train_dataloader: Any) -> int:
    try:
        batches = len(train_dataloader)
    except TypeError:
        raise ValueError(
            "p_granularity=epoch needs the length of an epoch, and this training dataset has no length. "
            "Use p_granularity=step."
        ) from None
    return max(-(-batches // args.gradient_accumulation_steps), 1)
