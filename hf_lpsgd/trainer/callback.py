"""The callback that ties p to the Trainer's LR scheduler and logs it."""

from __future__ import annotations

import logging
from typing import Any

from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from ..optim.base import LpOptimizer
from ..schedules import current_tie, tie_p_schedule, unwrap_optimizer
from .deepspeed import fit_deepspeed_config
from .optim_args import name_of, validate_optim_args

logger = logging.getLogger(__name__)


class LpScheduleCallback(TrainerCallback):
    """Ties p to the LR scheduler when training begins, and logs it wherever `learning_rate` is logged.

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
        base = unwrap_optimizer(optimizer)
        parsed = validate_optim_args(args)
        if parsed is None:
            if isinstance(base, LpOptimizer) and current_tie(base) is None:
                logger.warning(
                    "The %s given to this Trainer has no p schedule, so p stays at p_max. "
                    "Choose the optimizer by --optim, or call hf_lpsgd.tie_p_schedule.",
                    type(base).__name__,
                )
            return
        if not isinstance(base, LpOptimizer):
            raise ValueError(
                f"--optim {name_of(args.optim)} was asked for, but the Trainer trains with {type(base).__name__}, "
                "which has no p. Do not give the Trainer an optimizer of its own, neither as an object nor in a "
                "DeepSpeed config."
            )
        tie = current_tie(base)
        if tie is not None and not tie.by_trainer:
            logger.warning(
                "Keeping the p schedule already attached; ignoring p_schedule=%s of --optim_args.", parsed.p_schedule
            )
            return
        steps_per_epoch = None
        if parsed.p_granularity == "epoch" and parsed.p_schedule != "constant":
            steps_per_epoch = _update_steps_per_epoch(args, train_dataloader)
        tie = tie_p_schedule(
            base,
            lr_scheduler,
            parsed.p_schedule,
            num_training_steps=state.max_steps,
            num_warmup_steps=args.get_warmup_steps(state.max_steps),
            granularity=parsed.p_granularity,
            steps_per_epoch=steps_per_epoch,
        )
        tie.by_trainer = True

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
        logs["p"] = base.param_groups[0]["p"]  # for the callbacks that come later
        # The Trainer has already put a copy of the logs into its history.
        if state.log_history and "learning_rate" in state.log_history[-1]:
            state.log_history[-1]["p"] = logs["p"]


def _update_steps_per_epoch(args: TrainingArguments, train_dataloader: Any) -> int:
    try:
        batches = len(train_dataloader)
    except TypeError:
        raise ValueError(
            "p_granularity=epoch needs the length of an epoch, and this training dataset has no length. "
            "Use p_granularity=step."
        ) from None
    return max(-(-batches // args.gradient_accumulation_steps), 1)
