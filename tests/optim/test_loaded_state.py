"""Options asked for and not in force: after load_state_dict, and in groups that anyone has written to."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch

from hf_lpsgd import LPSGD, LPSGDM


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
        "p_max is 6, not 20 as asked for",
        "momentum is 0.8, not 0.9 as asked for",
        "eps is 1e-08, not 1e-06 as asked for",
        "weight_decay is 0.1, not 0 as asked for",
    ):
        assert message.count(told) == 1
    assert "set them in optimizer.param_groups after loading" in message
    assert optimizer.param_groups[0]["p_max"] == 6


def test_the_peak_of_the_learning_rate_is_told_where_a_scheduler_holds_it_and_the_rate_itself_is_not():
    saved = stepped(LPSGD, lr=0.1)
    torch.optim.lr_scheduler.LinearLR(saved)
    optimizer = LPSGD([param()], lr=0.2)
    torch.optim.lr_scheduler.LinearLR(optimizer)
    with pytest.warns(UserWarning, match=r"lr \(initial_lr\) is 0.1, not 0.2 as asked for"):
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
    copy.deepcopy(optimizer).load_state_dict(optimizer.state_dict())


def test_a_state_of_the_other_class_is_refused_both_ways_and_nothing_is_loaded():
    lpsgd, lpsgdm = stepped(LPSGD, p_max=6), stepped(LPSGDM, p_max=3)
    for taker, giver, message in (
        (lpsgd, lpsgdm, "The state holds momentum and momentum_dtype and so is one of LPSGDM, not of LPSGD"),
        (lpsgdm, lpsgd, "The state holds no momentum and so is not one of LPSGDM"),
    ):
        before = copy.deepcopy(taker.state_dict())
        with pytest.raises(ValueError, match=message) as error:
            taker.load_state_dict(giver.state_dict())
        assert "\n" not in str(error.value)
        after = taker.state_dict()
        assert after["param_groups"] == before["param_groups"]
        assert str(after["state"]) == str(before["state"])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("fused", "yes", "Invalid fused in a param group: 'yes'. It must be True, False or None."),
        ("foreach", 1, "Invalid foreach in a param group: 1. It must be True, False or None."),
        ("maximize", None, "Invalid maximize in a param group: None. It must be True or False."),
        (
            "momentum",
            1.0,
            "Invalid momentum in a param group: 1.0. It must be a number of at least 0 and less",
        ),
        ("eps", -1.0, "Invalid eps in a param group: -1.0"),
        ("weight_decay", float("nan"), "Invalid weight_decay in a param group: nan"),
        ("p", 1.5, "Invalid p in a param group: 1.5. It must be a finite number of at least 2."),
        ("p_max", "20", "Invalid p_max in a param group: '20'"),
        (
            "lr",
            torch.ones(2),
            "Invalid lr in a param group: a tensor of 2 elements. It must be a finite number of at least 0, not s",
        ),
    ],
)
def test_an_option_written_into_a_group_later_is_checked_at_the_step(name, value, message):
    optimizer = LPSGDM([param()])
    optimizer.param_groups[0][name] = value
    before = optimizer.param_groups[0]["params"][0].detach().clone()
    with pytest.raises(ValueError, match=r"Invalid ") as error:
        optimizer.step()
    assert str(error.value).startswith(message)
    assert torch.equal(optimizer.param_groups[0]["params"][0], before)


def test_fused_and_foreach_both_set_in_a_group_later_are_refused_at_the_step():
    optimizer = LPSGDM([param()], foreach=True)
    optimizer.param_groups[0]["fused"] = True
    with pytest.raises(ValueError, match="Invalid fused in a param group: True, with foreach=True"):
        optimizer.step()


def test_an_option_that_rounding_left_just_below_its_least_value_is_let_pass_except_eps():
    optimizer = LPSGDM([param()], lr=0.1, weight_decay=0.3, p_max=2)
    for _ in range(3):
        optimizer.param_groups[0]["weight_decay"] -= 0.1
        optimizer.step()
    assert optimizer.param_groups[0]["weight_decay"] < 0
    copy.deepcopy(optimizer).load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["eps"] = -1e-17
    with pytest.raises(ValueError, match="Invalid eps in a param group: -1e-17"):
        optimizer.step()


def test_numbers_of_other_kinds_and_a_tensor_of_one_element_are_let_pass_at_the_step():
    optimizer = LPSGDM([param()])
    optimizer.param_groups[0].update(lr=torch.tensor([0.1]), p=np.float32(3), momentum=0)
    optimizer.step()


def test_a_learning_rate_of_several_elements_is_told_as_such_by_the_constructor():
    with pytest.raises(ValueError, match=r"^Invalid lr: a tensor of 2 elements\. It must be a finite number"):
        LPSGDM([param()], lr=torch.tensor([0.1, 0.2]))
