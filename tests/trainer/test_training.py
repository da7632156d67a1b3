"""p in real runs of the Trainer."""

import itertools
import json
import math
import os
import warnings

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from reference import annealed_p, paper_p
from trainer_model import TinyModel, logged
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import SchedulerType

from hf_lpsgd import LPSGD, LPSGDM
from hf_lpsgd.optim.kernels import cpu
from hf_lpsgd.schedules import current_tie
from hf_lpsgd.wrappers import unwrap_optimizer

P_MAX = 20.0


def anneal(steps, warmup=0, schedule="cosine"):
    return [P_MAX] * warmup + [annealed_p(schedule, P_MAX, i, steps - warmup) for i in range(steps - warmup)]


@pytest.mark.parametrize("name", ["lpsgd", "lpsgdm"])
def test_p_is_p_max_through_the_warm_up_falls_to_2_and_is_saved_with_the_state(name, make_trainer, tmp_path):
    trainer = make_trainer(
        optim=name,
        optim_args="p_max=20",
        lr_scheduler_type="cosine",
        warmup_steps=4,
        max_steps=15,
        save_strategy="steps",
    )
    trainer.train()
    ps = logged(trainer)
    assert type(unwrap_optimizer(trainer.optimizer)) is {"lpsgd": LPSGD, "lpsgdm": LPSGDM}[name]
    assert ps == pytest.approx(anneal(15, warmup=4))
    assert ps[:5] == [P_MAX] * 5
    assert all(a > b for a, b in itertools.pairwise(ps[4:]))
    assert ps[-1] == 2.0
    with open(tmp_path / "out" / "checkpoint-15" / "trainer_state.json") as file:
        history = json.load(file)["log_history"]
    assert [entry["p"] for entry in history if "learning_rate" in entry] == ps
    assert all(("p" in entry) == ("learning_rate" in entry) for entry in history)


@pytest.mark.parametrize(
    ("lr", "optim_args", "times"), [(1e-5, None, 1), (1e-5, "rounding=stochastic", 0), (1e-2, None, 0)]
)
@pytest.mark.parametrize("warmup", [0, 6])
def test_bfloat16_weights_that_hardly_change_at_the_learning_rate_are_told_once(
    lr, optim_args, times, warmup, make_trainer
):
    trainer = make_trainer(
        learning_rate=lr,
        optim_args=optim_args,
        warmup_steps=warmup,
        max_steps=12,
        model=TinyModel().to(torch.bfloat16),
    )
    for loader in (trainer.train_dataset, trainer.eval_dataset):
        loader.inputs = loader.inputs.to(torch.bfloat16)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    assert sum(f"At a learning rate of {lr:g}, a step can change" in str(one.message) for one in caught) == times


@pytest.mark.parametrize(("optim_args", "fused"), [("fused=true", True), ("fused=false", False), (None, True)])
def test_the_fused_step_is_used_as_optim_args_say_and_by_default(optim_args, fused, make_trainer, monkeypatch):
    if fused and cpu.instructions() is None:
        pytest.skip("hf_lpsgd was installed without its CPU kernel")
    calls = []
    real = cpu.step
    make_trainer(optim_args=optim_args, max_steps=1).train()  # which proves the kernel, once per process
    monkeypatch.setattr(cpu, "step", lambda tensors, hyper: calls.append(len(tensors.params)) or real(tensors, hyper))
    trainer = make_trainer(optim_args=optim_args, max_steps=3)
    trainer.train()
    expected = [len(group["params"]) for group in trainer.optimizer.param_groups]  # with weight decay, and without
    assert calls == (expected * 3 if fused else [])


def test_tensorboard_and_the_console_get_p_with_the_learning_rate(make_trainer, tmp_path, monkeypatch, capsys):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    trainer = make_trainer(report_to=["tensorboard"], optim_args="p_max=20", max_steps=5)
    trainer.train()
    (folder,) = {os.path.dirname(path) for path in map(str, (tmp_path / "tb").rglob("events*"))}
    events = event_accumulator.EventAccumulator(folder)
    events.Reload()
    assert [event.value for event in events.Scalars("train/p")] == pytest.approx(logged(trainer))
    assert len(events.Scalars("train/learning_rate")) == 5
    assert "'p': '20'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"num_train_epochs": 2}, 20),
        ({"num_train_epochs": 1.5}, 15),
        ({"length": 41, "num_train_epochs": 2}, 22),
        ({"gradient_accumulation_steps": 3, "num_train_epochs": 2}, 8),
        ({"gradient_accumulation_steps": 4, "max_steps": 7}, 7),
        ({"length": 38, "gradient_accumulation_steps": 2, "num_train_epochs": 3, "warmup_steps": 0.2}, 15),
    ],
)
def test_p_keeps_in_step_with_the_lr_scheduler(arguments, steps, make_trainer):
    trainer = make_trainer(lr_scheduler_type="linear", **arguments)
    trainer.train()
    assert trainer.lr_scheduler.last_epoch == trainer.state.global_step == steps
    assert logged(trainer) == pytest.approx(anneal(steps, trainer.args.get_warmup_steps(steps)))


@pytest.mark.parametrize(
    ("arguments", "steps_per_epoch", "epochs", "steps"),
    [
        ({"num_train_epochs": 4}, 10, 4, 40),
        ({"length": 43, "gradient_accumulation_steps": 2, "num_train_epochs": 3}, 6, 3, 18),
        ({"max_steps": 25}, 10, 3, 25),
    ],
)
def test_epoch_granularity_gives_exactly_the_papers_p_s(arguments, steps_per_epoch, epochs, steps, make_trainer):
    trainer = make_trainer(optim_args="p_max=20,p_granularity=epoch", **arguments)
    trainer.train()
    expected = [paper_p(P_MAX, 1 + step // steps_per_epoch, epochs) for step in range(steps)]
    assert logged(trainer) == pytest.approx(expected, rel=1e-12)


def test_epoch_granularity_without_a_length_is_refused_with_what_to_use_instead(make_trainer):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            while True:
                yield {"inputs": torch.zeros(4), "labels": torch.tensor(0)}

    arguments = {"dataset": Stream(), "max_steps": 4}
    trainer = make_trainer(optim_args="p_granularity=epoch", **arguments)
    with pytest.raises(ValueError, match=r"this training dataset has no length. Use p_granularity=step"):
        trainer.train()
    trainer = make_trainer(**arguments)
    trainer.train()
    assert logged(trainer) == pytest.approx(anneal(4))


class OverflowAt(TrainerCallback):
    """Trains through a real gradient scaler, and lets the gradients overflow at some optimizer steps."""

    def __init__(self, attempts):
        self.attempts = attempts
        self.attempt = 0
        self.skipped = []

    def on_train_begin(self, args, state, control, **kwargs):
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0, backoff_factor=0.5, growth_interval=1000)
        base = self.trainer.optimizer.optimizer
        scaled = AcceleratedOptimizer(base, device_placement=False, scaler=scaler)
        self.trainer.optimizer = self.trainer.accelerator._optimizers[0] = scaled

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        scaler = self.trainer.optimizer.scaler
        scaler.scale(torch.ones(()))
        if self.attempt in self.attempts:
            next(model.parameters()).grad.fill_(math.inf)
        self.attempt += 1

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.skipped.append(self.trainer.accelerator.optimizer_step_was_skipped)


def test_steps_skipped_for_overflow_leave_p_and_lr_in_step(make_trainer):
    overflow = OverflowAt({2, 3, 6})
    trainer = make_trainer(max_steps=10, lr_scheduler_type="linear", callbacks=[overflow], max_grad_norm=0.0)
    overflow.trainer = trainer
    trainer.train()
    assert [i for i, skipped in enumerate(overflow.skipped) if skipped] == [2, 3, 6]
    assert trainer.lr_scheduler.last_epoch == 7
    made = [i for i in range(10) if i not in overflow.attempts]
    lrs, ps = logged(trainer, "learning_rate"), logged(trainer)
    assert [lrs[i] for i in made] == pytest.approx([1e-2 * (1 - t / 10) for t in range(7)])
    assert [ps[i] for i in made] == pytest.approx(anneal(10)[:7])


SCHEDULER_KWARGS = {
    "cosine_with_min_lr": {"min_lr": 1e-4},
    "cosine_warmup_with_min_lr": {"min_lr": 1e-4},
    "warmup_stable_decay": {"num_decay_steps": 4},
    "cosine_with_restarts": {"num_cycles": 2},
    "reduce_lr_on_plateau": {"patience": 0, "factor": 0.5, "threshold": 10.0},
    "greedy": {"patience": 0, "factor": 0.5, "min_lr": 1e-4, "threshold": 10.0},
}
AT_EVALUATIONS = ("reduce_lr_on_plateau", "greedy")


def arguments_for(scheduler_type):
    at_evaluations = {"eval_strategy": "steps", "eval_steps": 2} if scheduler_type.value in AT_EVALUATIONS else {}
    return {
        "lr_scheduler_type": scheduler_type.value,
        "lr_scheduler_kwargs": SCHEDULER_KWARGS.get(scheduler_type.value, {}),
        "warmup_steps": 3,
        "max_steps": 12,
        **at_evaluations,
    }


# `make test` has every scheduler once, with the p schedule that depends on it.
OFTEN_USED = ("linear", "cosine", "constant_with_warmup", *AT_EVALUATIONS)
SCHEDULERS = [
    kind if kind.value in OFTEN_USED else pytest.param(kind, marks=pytest.mark.exhaustive) for kind in SchedulerType
]


@pytest.mark.parametrize("scheduler_type", SCHEDULERS)
def test_cosine_works_with_every_scheduler_that_counts_steps_and_is_refused_by_the_others(
    scheduler_type, make_trainer
):
    if scheduler_type.value in AT_EVALUATIONS:
        with pytest.raises(ValueError, match=r"does not count them\. Use the p schedule 'lr'"):
            make_trainer(**arguments_for(scheduler_type))
        return
    trainer = make_trainer(**arguments_for(scheduler_type))
    trainer.train()
    assert logged(trainer) == pytest.approx(anneal(12, warmup=3))


@pytest.mark.parametrize("scheduler_type", list(SchedulerType))
def test_lr_follows_every_scheduler(scheduler_type, make_trainer):
    trainer = make_trainer(optim_args="p_schedule=lr", **arguments_for(scheduler_type))
    trainer.train()
    ps, lrs = logged(trainer), logged(trainer, "learning_rate")
    peaks = [max(1e-2, *lrs[:count]) for count in range(1, 13)]  # that of greedy rises
    assert ps == pytest.approx([2 + 18 * lr / peak for lr, peak in zip(lrs, peaks, strict=True)])
    assert len(set(lrs)) > 1 or scheduler_type is SchedulerType.CONSTANT
    assert len(set(ps)) > 1 or len(set(lrs)) == 1


def test_lr_goes_by_the_peak_of_a_scheduler_that_a_subclass_makes_whatever_learning_rate_was_given(make_trainer):
    class Own(Trainer):
        def create_scheduler(self, num_training_steps, optimizer=None):
            factors = [1e-3 * min(1, (step + 1) / 3, (12 - step) / 9) for step in range(num_training_steps + 1)]
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factors.__getitem__)
            return self.lr_scheduler

    trainer = make_trainer(trainer_class=Own, optim_args="p_schedule=lr", learning_rate=10.0, max_steps=12)
    trainer.train()
    lrs = logged(trainer, "learning_rate")
    assert max(lrs) == pytest.approx(1e-2)
    assert logged(trainer) == pytest.approx([2 + 18 * lr / max(lrs[: step + 1]) for step, lr in enumerate(lrs)])


@pytest.mark.parametrize("scheduler_type", SCHEDULERS)
def test_constant_stays_at_p_max_with_every_scheduler(scheduler_type, make_trainer):
    trainer = make_trainer(optim_args="p_schedule=constant,p_max=6", **arguments_for(scheduler_type))
    trainer.train()
    assert logged(trainer) == [6.0] * 12


@pytest.mark.parametrize("p_schedule", ["cosine", "lr"])
def test_a_resumed_run_ends_bit_for_bit_as_the_uninterrupted_one(p_schedule, make_trainer):
    arguments = {
        "optim_args": f"p_schedule={p_schedule}",
        "lr_scheduler_type": "cosine",
        "warmup_steps": 3,
        "max_steps": 14,
        "save_strategy": "steps",
        "save_steps": 5,
    }
    straight = make_trainer(**arguments)
    straight.train()
    resumed = make_trainer(**arguments)
    resumed.train(resume_from_checkpoint=os.path.join(straight.args.output_dir, "checkpoint-5"))
    for a, b in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
    keys = ("step", "p", "learning_rate", "loss", "grad_norm")
    histories = [
        [[entry.get(key) for key in keys] for entry in trainer.state.log_history if "loss" in entry]
        for trainer in (straight, resumed)
    ]
    assert histories[0] == histories[1]
    assert len(histories[0]) == 14


@pytest.mark.parametrize("scheduler_type", [kind for kind in SchedulerType if kind.value in AT_EVALUATIONS])
def test_a_resumed_run_remembers_the_peak_of_a_scheduler_that_counts_evaluations(scheduler_type, make_trainer):
    arguments = {**arguments_for(scheduler_type), "save_strategy": "steps", "save_steps": 6}
    straight = make_trainer(optim_args="p_schedule=lr", **arguments)
    straight.train()
    resumed = make_trainer(optim_args="p_schedule=lr", **arguments)
    resumed.train(resume_from_checkpoint=os.path.join(straight.args.output_dir, "checkpoint-6"))
    assert logged(resumed) == logged(straight)
    assert logged(straight)[6] not in (2.0, P_MAX)


def test_training_twice_anneals_twice(make_trainer):
    trainer = make_trainer(max_steps=6)
    trainer.train()
    trainer.train()
    assert logged(trainer) == pytest.approx(anneal(6))


def test_subclasses_of_the_trainer_need_no_change(make_trainer):
    class Subclass(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            self.was_used = True
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)

    trainer = make_trainer(trainer_class=Subclass, max_steps=4)
    trainer.train()
    assert trainer.was_used
    assert logged(trainer) == pytest.approx(anneal(4))


def test_weight_decay_reaches_the_groups_that_the_trainer_decays(make_trainer):
    trainer = make_trainer(weight_decay=0.1, max_steps=1)
    trainer.train()
    assert [group["weight_decay"] for group in unwrap_optimizer(trainer.optimizer).param_groups] == [0.1, 0.0]


def test_other_optimizers_train_as_before(make_trainer):
    trainer = make_trainer(optim="adamw_torch", max_steps=3)
    trainer.train()
    assert not any("p" in entry for entry in trainer.state.log_history)
    assert current_tie(trainer.optimizer) is None


@pytest.mark.parametrize("optim", ["adamw_torch", "lpsgdm", "lpsgdm_layerwise"])
@pytest.mark.parametrize(
    ("arguments", "made"), [({"num_train_epochs": 0, "warmup_steps": 2}, 0), ({"max_steps": 0}, 1)]
)
def test_a_run_without_a_step_trains_nothing_and_returns_as_with_adamw(optim, arguments, made, make_trainer, recwarn):
    trainer = make_trainer(optim=optim, max_grad_norm=0.0, **arguments)
    before = [param.clone() for param in trainer.model.parameters()]
    assert trainer.train().global_step == made  # with max_steps=0 the Trainer itself makes a step
    assert made or all(torch.equal(*pair) for pair in zip(before, trainer.model.parameters(), strict=True))
    assert not [warning for warning in recwarn if "p " in str(warning.message)]


def test_a_complete_run_that_is_resumed_without_a_step_to_make_returns_as_with_adamw(make_trainer, tmp_path):
    make_trainer(max_steps=4, save_strategy="steps", save_steps=4).train()
    resumed = make_trainer(num_train_epochs=0).train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert resumed.global_step == 4
