"""Options that were requested and are not in force: after load_state_dict, and where someone wrote into a group."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch

from hf_lpsgd import LPSGD, LPSGDM, tie_p_schedule


def param():
    parameter = torch.ones(3, requires_grad=True)
    parameter.grad = torch.full((3,), 0.5)
    return parameter


def stepped(cls, **options):
    optimizer = cls([param()], **options)
    optimizer.step()
    return optimizer


def test_one_warning_names_each_option_that_the_loaded_state_replaces():
    state = stepped(LPSGDM, lr=0.1, p_max=6, momentum=0.8, weight_decay=0.1).state_dict()
    optimizer = LPSGDM([param()], lr=0.1, p_max=20, eps=1e-6)
    with pytest.warns(UserWarning, match="The loaded state") as caught:
        optimizer.load_state_dict(state)
    (message,) = [str(warning.message) for warning in caught]
    assert message.startswith("The loaded state replaces options of this LPSGDM: ")
    for told in (
        "p_max is 6, not 20 as requested",
        "momentum is 0.8, not 0.9 as requested",
        "eps is 1e-08, not 1e-06 as requested",
        "weight_decay is 0.1, not 0 as requested",
    ):
        assert message.count(told) == 1
    assert (
        "start a new run from its weights, without --resume_from_checkpoint; in a loop of your own, you can" in message
    )
    assert "set them in optimizer.param_groups after loading" in message
    assert optimizer.param_groups[0]["p_max"] == 6


def test_the_peak_of_the_learning_rate_is_told_where_a_scheduler_holds_it_and_the_rate_itself_is_not():
    saved = stepped(LPSGD, lr=0.1)
    torch.optim.lr_scheduler.LinearLR(saved)
    optimizer = LPSGD([param()], lr=0.2)
    torch.optim.lr_scheduler.LinearLR(optimizer)
    with pytest.warns(UserWarning, match=r"lr \(initial_lr\) is 0.1, not 0.2 as requested"):
        optimizer.load_state_dict(saved.state_dict())


@pytest.mark.parametrize("cls", [LPSGD, LPSGDM])
def test_a_state_of_the_same_options_a_copy_and_a_pickle_are_not_told(cls):
    optimizer = stepped(cls, lr=0.1, p_max=6, weight_decay=0.1, fused=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = cls([param()], lr=0.3, p_max=6, weight_decay=0.1)
        same.load_state_dict(optimizer.state_dict())
        for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
            assert twin.param_groups[0]["p_max"] == 6


@pytest.mark.parametrize("make", [torch.optim.lr_scheduler.OneCycleLR, torch.optim.lr_scheduler.CyclicLR])
def test_a_momentum_that_the_lr_scheduler_cycles_is_not_told(make):
    lengths = {"total_steps": 20} if make is torch.optim.lr_scheduler.OneCycleLR else {"max_lr": 0.1}
    saved, taker = LPSGDM([param()], lr=0.1), LPSGDM([param()], lr=0.1)
    schedulers = [make(optimizer, 0.1, **lengths) for optimizer in (saved, taker)]
    for _ in range(5):
        saved.step()
        schedulers[0].step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        taker.load_state_dict(saved.state_dict())
    assert taker.param_groups[0]["momentum"] == saved.param_groups[0]["momentum"] != 0.9


def test_a_group_with_a_key_of_the_other_class_can_be_copied_and_loaded_again():
    optimizer = LPSGD([{"params": [param()], "momentum": 0.9}], lr=0.1)
    copied = copy.deepcopy(optimizer)
    copied.load_state_dict(optimizer.state_dict())
    assert copied.param_groups[0]["momentum"] == 0.9


def test_a_state_of_the_other_class_is_refused_both_ways_and_nothing_is_loaded():
    lpsgd, lpsgdm = stepped(LPSGD, p_max=6), stepped(LPSGDM, p_max=3)
    for taker, giver, message in (
        (lpsgd, lpsgdm, "The state holds momentum and momentum_dtype and so is not one of LPSGD:"),
        (lpsgdm, lpsgd, "The state holds no momentum and so is not one of LPSGDM"),
    ):
        before = copy.deepcopy(taker.state_dict())
        with pytest.raises(ValueError, match=message) as error:
            taker.load_state_dict(giver.state_dict())
        assert "\n" not in str(error.value)
        after = taker.state_dict()
        assert after["param_groups"] == before["param_groups"]
        assert str(after["state"]) == str(before["state"])


def test_what_is_written_into_a_group_later_takes_effect():
    optimizer = LPSGDM([param()])
    optimizer.param_groups[0].update(lr=torch.tensor([0.1]), p_max=np.float32(3), momentum=0)
    optimizer.step()
    assert optimizer.param_groups[0]["p"] == 3.0
    torch.testing.assert_close(optimizer.param_groups[0]["params"][0].detach(), torch.full((3,), 1 - 0.1 * 0.5**0.5))


def test_p_that_is_written_by_hand_is_replaced_by_p_max_with_one_warning():
    optimizer = LPSGD([param()], p_max=20.0)
    optimizer.param_groups[0]["p"] = 5.0
    with pytest.warns(UserWarning, match=r"p goes from 5 .* to 20: no LR scheduler is tied .* set p_max if"):
        optimizer.step()
    assert optimizer.param_groups[0]["p"] == 20.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.param_groups[0]["p_max"] = 5.0  # what the warning says to do
        optimizer.step()
    assert optimizer.param_groups[0]["p"] == 5.0


def test_a_learning_rate_of_several_elements_is_told_as_such_by_the_constructor():
    with pytest.raises(ValueError, match=r"^Invalid lr: a tensor of 2 elements\. It must be a finite number"):
        LPSGDM([param()], lr=torch.tensor([0.1, 0.2]))


@pytest.mark.parametrize("cls", [LPSGD, LPSGDM])
def test_a_subclass_with_a_constructor_of_its_own_is_copied_pickled_and_loaded(cls):
    class Own(cls):
        def __init__(self, params, **options):
            super().__init__(params, lr=0.1, **options)

    optimizer = stepped(Own, p_max=6)
    twin = copy.deepcopy(optimizer)
    twin.load_state_dict(optimizer.state_dict())
    assert twin.param_groups[0]["p_max"] == 6.0


@pytest.mark.parametrize("is_tied", [False, True])
def test_p_max_that_is_written_after_loading_as_the_warning_says_gives_no_other_warning(is_tied):
    saved = stepped(LPSGD, p_max=20)
    optimizer = LPSGD([param()], p_max=10)
    if is_tied:
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
        tie_p_schedule(optimizer, scheduler, num_training_steps=10)
    with pytest.warns(UserWarning, match="p_max is 20, not 10 as requested"):
        optimizer.load_state_dict(saved.state_dict())
    optimizer.param_groups[0]["p_max"] = 10.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert optimizer.param_groups[0]["p"] == 10.0
