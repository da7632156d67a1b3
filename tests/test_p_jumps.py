"""A p that is loaded, copied or written by hand, and is not the one in force."""

import copy
import warnings

import pytest
from reference import annealed_p
from tied import P_MAX, STEPS, linear, make_optimizer, messages, step

from hf_lpsgd import tie_p_schedule


def saved_in_the_middle(schedule="cosine", at=STEPS // 2):
    optimizer = make_optimizer()
    scheduler = linear(optimizer)
    tie_p_schedule(optimizer, scheduler, schedule, num_training_steps=STEPS)
    for _ in range(at):
        step(optimizer)
        scheduler.step()
    return optimizer.state_dict(), scheduler.state_dict()


def resume(states, schedule="cosine", steps=STEPS, load_scheduler=True, tie_first=True):
    optimizer = make_optimizer()
    scheduler = linear(optimizer)
    if tie_first:
        tie_p_schedule(optimizer, scheduler, schedule, num_training_steps=steps)
    optimizer.load_state_dict(states[0])
    if load_scheduler:
        scheduler.load_state_dict(states[1])
    if not tie_first:
        tie_p_schedule(optimizer, scheduler, schedule, num_training_steps=steps)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step(optimizer)
        step(optimizer)
    return messages(caught)


@pytest.mark.parametrize("tie_first", [True, False])
def test_a_state_loaded_under_another_horizon_schedule_or_without_its_scheduler_is_warned_of(tie_first):
    states = saved_in_the_middle(at=STEPS)
    assert states[0]["param_groups"][0]["p"] == 2.0
    (longer,) = resume(states, steps=2 * STEPS, tie_first=tie_first)
    now = annealed_p("cosine", P_MAX, STEPS, 2 * STEPS)
    assert f"p goes from 2 in the param group to {now:.4g}: the p schedule 'cosine' over 80 steps is not" in longer
    (shorter,) = resume(saved_in_the_middle(), steps=STEPS // 2, tie_first=tie_first)
    assert "to 2: the p schedule 'cosine' over 20 steps" in shorter
    (constant,) = resume(states, "constant", tie_first=tie_first)
    assert "to 20: the p schedule 'constant'" in constant
    (forgotten,) = resume(states, load_scheduler=False, tie_first=tie_first)
    assert "its LR scheduler was not loaded with it" in forgotten


@pytest.mark.parametrize("tie_first", [True, False])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "lr", "constant"])
@pytest.mark.parametrize("at", [1, STEPS // 2, STEPS - 1])
def test_a_state_that_goes_on_under_its_own_schedule_is_accepted(at, schedule, tie_first):
    assert resume(saved_in_the_middle(schedule, at), schedule, tie_first=tie_first) == []


def half_way():
    optimizer = make_optimizer()
    scheduler = linear(optimizer)
    tie_p_schedule(optimizer, scheduler, num_training_steps=STEPS)
    for _ in range(STEPS // 2):
        step(optimizer)
        scheduler.step()
    return optimizer


def loaded_into_another(optimizer):
    other = make_optimizer()
    other.load_state_dict(optimizer.state_dict())
    return other


@pytest.mark.parametrize("take_over", [loaded_into_another, copy.deepcopy])
def test_a_loaded_or_copied_p_that_no_tie_moves_is_warned_of_once_and_goes_to_p_max(take_over):
    optimizer = take_over(half_way())
    found = optimizer.param_groups[0]["p"]
    assert found < P_MAX
    with pytest.warns(UserWarning, match=f"p goes from {found:.4g} in the param group to 20: ") as caught:
        step(optimizer)
    (message,) = messages(caught)
    assert "no LR scheduler is tied" in message
    assert "\n" not in message
    assert optimizer.param_groups[0]["p"] == P_MAX
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(optimizer)


@pytest.mark.parametrize("take_over", [loaded_into_another, copy.deepcopy])
def test_a_loaded_or_copied_p_that_is_meant_to_stay_is_accepted(take_over):
    optimizer = take_over(half_way())
    p = optimizer.param_groups[0]["p_max"] = optimizer.param_groups[0]["p"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            step(optimizer)
    assert optimizer.param_groups[0]["p"] == p


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_p_that_is_written_by_hand_is_replaced_with_a_warning(is_tied):
    optimizer = make_optimizer()
    if is_tied:
        tie_p_schedule(optimizer, linear(optimizer), num_training_steps=STEPS)
    step(optimizer)
    optimizer.param_groups[0]["p"] = 5.0
    with pytest.warns(UserWarning, match="p goes from 5 in the param group to 20: ") as caught:
        step(optimizer)
    assert len(messages(caught)) == 1
    assert optimizer.param_groups[0]["p"] == P_MAX
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(optimizer)
