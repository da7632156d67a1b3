"""What the Trainer's callback notices: ties to other schedulers, optimizers of others, options not in force."""

import logging
import os
import re

import pytest
import torch
from reference import annealed_p
from trainer_model import TinyModel, logged
from transformers import Trainer, TrainerCallback

import hf_lpsgd.trainer.callback
from hf_lpsgd import LPSGDM, tie_p_schedule
from hf_lpsgd.optim.shards import Partitions
from hf_lpsgd.wrappers import unwrap_optimizer

P_MAX = 20.0
LOGGER = hf_lpsgd.trainer.callback.__name__


def cosine(steps, p_max=P_MAX):
    return pytest.approx([annealed_p("cosine", p_max, index, steps) for index in range(steps)])


def tied_by_the_user(steps=10, schedule="cosine"):
    model = TinyModel()
    optimizer = LPSGDM(model.parameters(), lr=0.01, p_max=P_MAX)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
    tie_p_schedule(optimizer, scheduler, schedule, num_training_steps=steps)
    return model, optimizer, scheduler


@pytest.mark.covering
@pytest.mark.parametrize("optim", ["adamw_torch", "lpsgdm"])
@pytest.mark.parametrize("schedule", ["cosine", "lr"])
def test_p_tied_to_a_scheduler_that_the_trainer_does_not_step_is_refused_before_training(
    schedule, optim, make_trainer
):
    model, optimizer, _ = tied_by_the_user(schedule=schedule)
    trainer = make_trainer(model=model, optim=optim, optimizers=(optimizer, None), max_steps=10)
    message = r"p is tied to a LinearLR that this Trainer does not step.*optimizers=\(optimizer, lr_scheduler\)"
    with pytest.raises(ValueError, match=message) as error:
        trainer.train()
    assert "\n" not in str(error.value)
    assert trainer.state.global_step == 0


class Warmup(torch.optim.lr_scheduler.LRScheduler):
    """As schedulers of other libraries do, it holds the one that goes on after it."""

    def __init__(self, after):
        self.after, self.optimizer = after, after.optimizer

    def step(self):
        self.after.step()

    def get_last_lr(self):
        return self.after.get_last_lr()


@pytest.mark.parametrize("wrap", [lambda scheduler: scheduler, Warmup, "sequential"])
def test_p_tied_to_the_scheduler_that_the_trainer_steps_or_to_a_member_of_it_is_accepted(wrap, make_trainer):
    model, optimizer, scheduler = tied_by_the_user()
    if wrap == "sequential":
        later = torch.optim.lr_scheduler.ConstantLR(optimizer)
        given = torch.optim.lr_scheduler.SequentialLR(optimizer, [scheduler, later], [100])
    else:
        given = wrap(scheduler)
    trainer = make_trainer(model=model, optim="adamw_torch", optimizers=(optimizer, given), max_steps=10)
    trainer.train()
    assert logged(trainer) == cosine(10)


def test_a_constant_p_needs_no_scheduler_of_the_trainer(make_trainer):
    model, optimizer, _ = tied_by_the_user(schedule="constant")
    trainer = make_trainer(model=model, optim="adamw_torch", optimizers=(optimizer, None), max_steps=3)
    trainer.train()
    assert logged(trainer) == [P_MAX] * 3


def test_a_second_trainer_that_takes_the_optimizer_of_the_first_anneals_p_anew(make_trainer, recwarn):
    first = make_trainer(optim_args="p_max=20,p_schedule=linear", max_steps=6)
    first.train()
    optimizer = unwrap_optimizer(first.optimizer)
    assert optimizer.param_groups[0]["p"] == 2.0
    arguments = {"model": first.model, "optimizers": (optimizer, None), "max_steps": 9}
    second = make_trainer(optim_args="p_schedule=linear", **arguments)
    second.train()
    assert not [warning for warning in recwarn if "p goes from" in str(warning.message)]
    assert logged(second) == pytest.approx([annealed_p("linear", P_MAX, index, 9) for index in range(9)])
    third = make_trainer(optim="adamw_torch", **arguments)
    third.train()
    assert logged(third) == logged(second)


def test_a_second_training_of_one_trainer_anneals_p_anew(make_trainer):
    trainer = make_trainer(optim_args="p_max=20", max_steps=6)
    trainer.train()
    trainer.train()
    assert logged(trainer) == cosine(6)


class OwnOptimizer(Trainer):
    """As the Trainers of other libraries do, this one makes its optimizer by itself."""

    def create_optimizer(self, *args, **kwargs):
        self.optimizer = LPSGDM(self.model.parameters(), lr=0.01, p_max=6)
        return self.optimizer


def test_a_subclass_that_makes_an_optimizer_of_ours_is_tied_and_warned_as_any_other(make_trainer):
    tied = make_trainer(trainer_class=OwnOptimizer, optim="lpsgdm", max_steps=6)
    tied.train()
    assert logged(tied) == cosine(6, p_max=6)
    untied = make_trainer(trainer_class=OwnOptimizer, optim="adamw_torch", max_steps=6)
    with pytest.warns(UserWarning, match="p stays at p_max"):
        untied.train()
    assert logged(untied) == [6.0] * 6


def test_a_subclass_that_makes_the_other_optimizer_of_ours_than_requested_is_refused(make_trainer):
    trainer = make_trainer(trainer_class=OwnOptimizer, optim="lpsgd", max_steps=1)
    with pytest.raises(ValueError, match=r"--optim lpsgd was requested, but the Trainer trains with LPSGDM\. Do not"):
        trainer.train()


class OtherScheduler(TrainerCallback):
    """Takes the Trainer's LR scheduler away in the middle of a run."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            self.trainer.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(unwrap_optimizer(self.trainer.optimizer))


def test_an_lr_scheduler_that_is_replaced_during_training_is_warned_of(make_trainer):
    callback = OtherScheduler()
    trainer = make_trainer(optim_args="p_max=20", max_steps=12, callbacks=[callback])
    callback.trainer = trainer
    with pytest.warns(UserWarning, match="p is tied to a LambdaLR that has not moved at 5 or more optimizer steps"):
        trainer.train()


@pytest.fixture
def checkpoint(make_trainer, tmp_path):
    trainer = make_trainer(
        optim_args="p_max=20,momentum=0.8", weight_decay=0.1, max_steps=10, save_strategy="steps", save_steps=10
    )
    trainer.train()
    return str(tmp_path / "out" / "checkpoint-10")


def resumed(make_trainer, checkpoint, **arguments):
    defaults = {"optim_args": "p_max=20,momentum=0.8", "weight_decay": 0.1, "max_steps": 20}
    trainer = make_trainer(**{**defaults, **arguments})
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


@pytest.mark.parametrize(
    ("course", "jump"),
    [
        ({"optim_args": "p_max=20,momentum=0.8,p_schedule=linear"}, "to 10.53: the p schedule 'linear' over 20 steps"),
        ({}, "to 10.26: the p schedule 'cosine' over 20 steps"),
        ({"optim_args": "p_max=20,momentum=0.8,p_schedule=constant"}, "to 20: the p schedule 'constant'"),
    ],
)
def test_a_resumed_run_is_warned_once_of_a_course_of_p_that_is_not_the_checkpoints(
    course, jump, make_trainer, checkpoint, recwarn
):
    resumed(make_trainer, checkpoint, **course)
    (message,) = [str(warning.message) for warning in recwarn if "p goes from" in str(warning.message)]
    assert f"p goes from 2 in the param group {jump}" in message
    assert "\n" not in message


def test_a_resumed_run_is_warned_of_each_option_of_the_optimizer_that_the_checkpoint_replaces(
    make_trainer, checkpoint, recwarn
):
    trainer = resumed(make_trainer, checkpoint, optim_args="p_max=6", weight_decay=0.2)
    (message,) = [str(warning.message) for warning in recwarn if "replaces options" in str(warning.message)]
    for told in ("p_max is 20, not 6", "momentum is 0.8, not 0.6", "weight_decay is 0.1, not 0.2"):
        assert message.count(told) == 1
    assert unwrap_optimizer(trainer.optimizer).param_groups[0]["p_max"] == 20


def test_a_resumed_run_of_the_same_options_is_not_warned(make_trainer, tmp_path, caplog, recwarn):
    arguments = {"optim_args": "p_max=20,p_schedule=linear", "max_steps": 10}
    make_trainer(**arguments, save_strategy="steps", save_steps=5).train()
    with caplog.at_level(logging.WARNING, LOGGER):
        trainer = resumed(make_trainer, str(tmp_path / "out" / "checkpoint-5"), **arguments, weight_decay=0.0)
    assert logged(trainer)[-5:] == pytest.approx([annealed_p("linear", P_MAX, index, 10) for index in range(5, 10)])
    assert not [record for record in caplog.records if record.name == LOGGER]
    assert not [warning for warning in recwarn if re.search(r"replaces|p goes from|not moved", str(warning.message))]


def test_a_checkpoint_of_the_other_optimizer_is_refused_in_one_line(make_trainer, checkpoint):
    with pytest.raises(ValueError, match="The state holds momentum and momentum_dtype and so is not one of LPSGD: "):
        resumed(make_trainer, checkpoint, optim="lpsgd", optim_args=None)


def test_optim_args_that_a_subclass_leaves_out_are_warned_of_and_those_in_force_are_not(make_trainer, caplog):
    with caplog.at_level(logging.WARNING, LOGGER):
        make_trainer(trainer_class=OwnOptimizer, optim_args="p_max=6,p_schedule=linear", max_steps=1).train()
        assert not caplog.messages
        make_trainer(trainer_class=OwnOptimizer, optim_args="p_max=20,momentum=0.5", max_steps=1).train()
    (message,) = caplog.messages
    assert "was not made from --optim_args: p_max is 6.0, not 20.0 as requested; momentum is 0.9, not 0.5" in message
    assert "\n" not in message


def test_a_subclass_that_gives_each_group_its_own_options_is_accepted(make_trainer, caplog):
    class Groups(Trainer):
        def create_optimizer(self, *args, **kwargs):
            super().create_optimizer(*args, **kwargs)
            for group in self.optimizer.param_groups:
                group["p_max"] = 6.0
            return self.optimizer

    with caplog.at_level(logging.WARNING, LOGGER):
        make_trainer(trainer_class=Groups, optim_args="p_max=20", max_steps=1).train()
    assert not caplog.messages


@pytest.mark.parametrize("lost", ["optimizer.pt", "scheduler.pt"])
def test_a_checkpoint_without_the_state_of_optimizer_or_scheduler_is_warned_of(lost, make_trainer, checkpoint, caplog):
    os.remove(os.path.join(checkpoint, lost))
    with caplog.at_level(logging.WARNING, LOGGER):
        resumed(make_trainer, checkpoint, max_steps=11)
    assert "The checkpoint of step 10 held no state of the optimizer and the LR scheduler" in caplog.text


@pytest.mark.parametrize("is_tied", [False, True])
def test_the_partitions_of_an_optimizer_that_the_user_gave_are_handed_over(is_tied, make_trainer, monkeypatch):
    partitions = Partitions("the group")
    monkeypatch.setattr(hf_lpsgd.trainer.callback, "partitions_of", lambda optimizer, model: partitions)
    model, optimizer, scheduler = tied_by_the_user()
    if not is_tied:
        optimizer.tie.remove()
    make_trainer(model=model, optim="adamw_torch", optimizers=(optimizer, scheduler), max_steps=1).train()
    assert optimizer.partitions is partitions
