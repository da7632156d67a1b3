"""grad_rms in real runs of the Trainer: optim_args, logs, checkpoints."""

import json
import os

import pytest
import torch
from trainer_model import logged

from hf_lpsgd.optim.measurement import FEWEST_UPDATES, MEASURED
from hf_lpsgd.wrappers import unwrap_optimizer


def train(make_trainer, optim_args="grad_rms=auto", resume=None, **arguments):
    trainer = make_trainer(optim_args=optim_args, **{"max_steps": 30, "warmup_steps": 4, **arguments})
    trainer.train(resume_from_checkpoint=resume)
    return trainer, unwrap_optimizer(trainer.optimizer).param_groups


@pytest.mark.parametrize("optim", ["lpsgd", "lpsgdm"])
def test_auto_is_logged_beside_p_while_it_is_measured_and_frozen_for_the_rest(optim, make_trainer):
    trainer, groups = train(make_trainer, optim=optim)
    sizes = logged(trainer, "grad_rms")
    assert len(sizes) == len(logged(trainer)) == 30
    assert len(set(sizes[:FEWEST_UPDATES])) == FEWEST_UPDATES
    assert set(sizes[FEWEST_UPDATES - 1 :]) == {groups[0]["grad_rms"]} == {groups[1]["grad_rms"]}
    assert all(size > 0 for size in sizes)


def test_a_longer_warm_up_is_measured_to_its_end(make_trainer):
    _, groups = train(make_trainer, warmup_steps=25)
    assert groups[0][MEASURED][1] == 25


def test_a_number_is_taken_as_it_is_and_none_is_not_logged(make_trainer):
    trainer, groups = train(make_trainer, "grad_rms=0.25", max_steps=3)
    assert logged(trainer, "grad_rms") == [0.25] * 3
    assert groups[0]["grad_rms"] == 0.25
    trainer, groups = train(make_trainer, "grad_rms=none", max_steps=3)
    assert groups[0]["grad_rms"] is None
    assert all("grad_rms" not in entry for entry in trainer.state.log_history)


# The second cut is at the end of an epoch: transformers 5.2 resumes no later epoch exactly in its middle.
@pytest.mark.parametrize("cut", [5, 30])
def test_a_run_resumed_while_it_measures_or_after_ends_as_the_uninterrupted_one(cut, make_trainer, tmp_path, recwarn):
    whole, groups = train(make_trainer, save_strategy="steps", save_steps=cut, max_steps=40)
    checkpoint = str(tmp_path / "out" / f"checkpoint-{cut}")
    with open(os.path.join(checkpoint, "trainer_state.json")) as file:
        assert json.load(file)["log_history"][-1]["grad_rms"] == logged(whole, "grad_rms")[cut - 1]
    expected = [parameter.detach().clone() for parameter in whole.model.parameters()]
    resumed, others = train(make_trainer, resume=checkpoint, max_steps=40)
    assert logged(resumed, "grad_rms") == logged(whole, "grad_rms")
    assert [group["grad_rms"] for group in others] == [group["grad_rms"] for group in groups]
    for parameter, other in zip(expected, resumed.model.parameters(), strict=True):
        assert torch.equal(parameter, other)
    assert not [warning for warning in recwarn if "replaces options" in str(warning.message)]


@pytest.mark.parametrize(
    ("optim_args", "message"),
    [
        (
            "grad_rms=0",
            "Invalid grad_rms in optim_args: 0.0. It must be None, 'auto' or a finite number of at",
        ),
        ("grad_rms=-1", "Invalid grad_rms in optim_args: -1.0. It must be None, 'auto' or"),
        ("grad_rms=nan", "Invalid grad_rms in optim_args: nan. It must be None, 'auto' or"),
        ("grad_rms=atuo", "Invalid grad_rms in optim_args: 'atuo'. It must be None, 'auto' or"),
        ("grad_rms", "Invalid grad_rms in optim_args: ''. It must be None, 'auto' or"),
        ("grad_rms=auto,saturation=0.1", "'saturation=0.1' has no known key."),
    ],
)
def test_bad_sizes_stop_the_trainers_constructor_with_one_line(optim_args, message, make_trainer):
    with pytest.raises(ValueError, match="optim_args") as error:
        make_trainer(optim_args=optim_args)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_learning_rate_that_is_changed_by_hand_between_steps_is_obeyed(make_trainer):
    trainer, groups = train(make_trainer, max_steps=FEWEST_UPDATES + 2)
    optimizer = unwrap_optimizer(trainer.optimizer)
    for group in groups:
        group["lr"] = 0.0
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    for parameter in trainer.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for parameter, old in zip(trainer.model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


@pytest.mark.covering
@pytest.mark.parametrize("optim", ["lpsgd", "lpsgdm"])
@pytest.mark.parametrize("optim_args", [None, "p_max=6"])
def test_optim_measures_by_default_and_none_is_the_papers_step(optim, optim_args, make_trainer):
    trainer, groups = train(make_trainer, optim_args, optim=optim)
    assert isinstance(groups[0]["grad_rms"], float)
    assert groups[0]["p_max"] == (20.0 if optim_args is None else 6.0)
    explicit, _ = train(make_trainer, ",".join(filter(None, [optim_args, "grad_rms=auto"])), optim=optim)
    for ours, theirs in zip(trainer.model.parameters(), explicit.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    _, groups = train(make_trainer, "grad_rms=none", optim=optim)
    assert groups[0]["grad_rms"] is None
