"""An optimizer that the user gives to the Trainer: whose tie is in force, and what is refused or warned of."""

import logging

import pytest
import torch
from accelerate import PartialState
from reference import annealed_p
from trainer_model import logged

from hf_lpsgd import LPSGDM, tie_p_schedule


def own_optimizer(trainer_model):
    optimizer = LPSGDM(trainer_model.parameters(), lr=1e-2, p_max=6.0)
    return optimizer, torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 8)


@pytest.mark.parametrize("optim", ["adamw_torch", "lpsgdm"])
def test_an_optimizer_of_the_users_own_keeps_the_tie_the_user_made(optim, make_trainer):
    model = make_trainer().model
    optimizer, scheduler = own_optimizer(model)
    tie_p_schedule(optimizer, scheduler, "linear", num_training_steps=8)
    trainer = make_trainer(optim=optim, model=model, optimizers=(optimizer, scheduler), max_steps=8)
    trainer.train()
    assert logged(trainer) == pytest.approx([annealed_p("linear", 6.0, i, 8) for i in range(8)])


def test_an_optimizer_of_the_users_own_without_a_tie_stays_at_p_max_with_a_warning(make_trainer):
    model = make_trainer().model
    trainer = make_trainer(optim="adamw_torch", model=model, optimizers=own_optimizer(model), max_steps=3)
    with pytest.warns(UserWarning, match="The learning rate falls, and p stays at p_max: nothing ties it to the rate"):
        trainer.train()
    assert logged(trainer) == [6.0] * 3


def test_an_optimizer_of_the_users_own_may_follow_the_rate_without_a_tie(make_trainer, recwarn):
    model = make_trainer().model
    optimizer = LPSGDM(model.parameters(), lr=1e-2, p_max=6.0, p_schedule="lr")
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 8)
    trainer = make_trainer(optim="adamw_torch", model=model, optimizers=(optimizer, scheduler), max_steps=8)
    trainer.train()
    assert logged(trainer) == pytest.approx([2 + 4 * (1 - 0.9 * i / 8) for i in range(8)])
    assert not [warning for warning in recwarn if "p stays" in str(warning.message)]


def test_the_warnings_of_the_callback_appear_on_the_first_rank_alone(make_trainer, caplog, monkeypatch):
    monkeypatch.setattr(PartialState, "is_main_process", property(lambda state: False))
    model = make_trainer().model
    options = {"optim_args": "p_max=9", "optimizers": own_optimizer(model)}
    trainer = make_trainer(model=model, max_steps=3, **options)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert "was not made from --optim_args" not in caplog.text
    monkeypatch.undo()
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert "was not made from --optim_args" in caplog.text


def test_requesting_lpsgdm_and_giving_another_optimizer_is_refused(make_trainer):
    model = make_trainer().model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = make_trainer(model=model, optimizers=(optimizer, None), max_steps=3)
    with pytest.raises(ValueError, match="--optim lpsgdm was requested, but the Trainer trains with SGD"):
        trainer.train()
