"""p without a tie: the option p_schedule, and the notice where p stays while the learning rate falls."""

import copy
import pickle
import warnings

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim.lr_scheduler import ConstantLR, LambdaLR, LinearLR, OneCycleLR, ReduceLROnPlateau, SequentialLR

from hf_lpsgd import LPSGD, LPSGDM, tie_p_schedule

OPTIMIZERS = pytest.mark.parametrize("cls", [LPSGD, LPSGDM])
STAYS = "The learning rate falls, and p stays at p_max: nothing ties it to the rate"


def make(cls=LPSGDM, **options):
    param = torch.nn.Parameter(torch.ones(3))
    return cls([param], **{"lr": 0.1, "p_max": 10.0, **options})


def steps(optimizer, scheduler=None, count=10):
    """The p of each step, and the learning rate."""
    seen = []
    for _ in range(count):
        for param in optimizer.param_groups[0]["params"]:
            param.grad = torch.full_like(param, 0.5)
        optimizer.step()
        seen.append((optimizer.param_groups[0]["p"], optimizer.param_groups[0]["lr"]))
        if scheduler is not None:
            scheduler.step(*([1.0] if isinstance(scheduler, ReduceLROnPlateau) else []))
    return seen


SCHEDULERS = {
    "warm-up and decay": (
        lambda optimizer: SequentialLR(
            optimizer, [LinearLR(optimizer, 0.1, 1.0, 4), LinearLR(optimizer, 1.0, 0.1, 6)], [4]
        )
    ),
    "a lambda that scales the rate that was given": lambda optimizer: LambdaLR(
        optimizer, lambda step: 1e-3 / (1 + step)
    ),
    "one cycle": lambda optimizer: OneCycleLR(optimizer, 0.3, total_steps=12, cycle_momentum=False),
    "at plateaus": lambda optimizer: ReduceLROnPlateau(optimizer, patience=2),
    "constant": lambda optimizer: ConstantLR(optimizer, 1.0),
    "none": lambda optimizer: None,
}


@OPTIMIZERS
@pytest.mark.parametrize("name", SCHEDULERS)
def test_p_follows_the_rate_over_the_largest_so_far(cls, name):
    optimizer = make(cls, p_schedule="lr")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = steps(optimizer, SCHEDULERS[name](optimizer))
    largest = 0.0
    for p, lr in seen:
        largest = max(largest, lr)
        assert p == pytest.approx(2 + 8 * lr / largest)


@OPTIMIZERS
def test_a_rate_that_someone_writes_into_the_groups_is_followed(cls):
    optimizer = make(cls, p_schedule="lr")
    assert steps(optimizer, count=1) == [(10.0, 0.1)]
    optimizer.param_groups[0]["lr"] = 0.05  # as timm's and Lightning's schedulers do
    assert steps(optimizer, count=1) == [(6.0, 0.05)]


def test_each_group_follows_its_own_rate_or_not():
    one, two = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = LPSGDM([{"params": [one], "p_schedule": "lr"}, {"params": [two], "lr": 1.0}], lr=0.1, p_max=10)
    optimizer.step()
    for group in optimizer.param_groups:
        group["lr"] /= 2
    with pytest.warns(UserWarning, match=STAYS):
        optimizer.step()
    assert [group["p"] for group in optimizer.param_groups] == [6.0, 10.0]


def test_a_tie_replaces_it():
    optimizer = make(p_schedule="lr")
    scheduler = LinearLR(optimizer, 1.0, 0.5, 4)
    tie = tie_p_schedule(optimizer, scheduler, "linear", num_training_steps=5)
    assert [p for p, _ in steps(optimizer, scheduler, 5)] == [10, 8, 6, 4, 2]
    tie.remove()
    assert steps(optimizer, count=1)[0][0] == pytest.approx(10)  # the rate is the largest that it has followed


@pytest.mark.parametrize(
    "copied", [lambda one: pickle.loads(pickle.dumps(one)), copy.deepcopy], ids=["pickle", "deepcopy"]
)
def test_a_copy_goes_on_as_the_original(copied):
    optimizer = make(p_schedule="lr")
    steps(optimizer, LinearLR(optimizer, 1.0, 0.1, 10), 5)
    other = copied(optimizer)
    assert steps(other, count=1) == steps(optimizer, count=1)


def test_a_resumed_run_knows_the_peak():
    optimizer = make(p_schedule="lr")
    scheduler = LinearLR(optimizer, 1.0, 0.1, 10)
    steps(optimizer, scheduler, 5)
    resumed = make(p_schedule="lr")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed.load_state_dict(optimizer.state_dict())
        assert steps(resumed, count=1) == steps(optimizer, count=1)


@pytest.mark.parametrize("given", ["cosine", "constant", True])
def test_other_values_are_refused(given):
    with pytest.raises(ValueError, match=r"Invalid p_schedule: .* It must be one of lr and None"):
        make(p_schedule=given)


def test_a_warm_up_is_measured_as_long_as_the_rate_rises():
    optimizer = make(p_schedule="lr", grad_rms="auto")
    warmup = LinearLR(optimizer, 0.01, 1.0, 40)
    steps(optimizer, warmup, 30)
    assert optimizer.param_groups[0]["grad_rms"] == "auto"
    steps(optimizer, warmup, 15)
    assert isinstance(optimizer.param_groups[0]["grad_rms"], float)
    constant = make(p_schedule="lr", grad_rms="auto")
    steps(constant, count=22)
    assert isinstance(constant.param_groups[0]["grad_rms"], float)


@OPTIMIZERS
def test_without_tie_and_schedule_a_falling_rate_is_noticed_once(cls):
    optimizer = make(cls)
    with pytest.warns(UserWarning, match=STAYS) as caught:
        assert {p for p, _ in steps(optimizer, LinearLR(optimizer, 1.0, 0.1, 10))} == {10.0}
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_a_state_loaded_in_place_holds_the_peak():
    def at_half_of_its_peak(steps_made):
        model = torch.nn.Linear(2, 2)
        optimizer = LPSGDM(model.parameters(), lr=0.1, p_max=10.0, p_schedule="lr")
        for lr in (0.1, 0.05)[:steps_made]:
            optimizer.param_groups[0]["lr"] = lr
            model(torch.ones(2)).sum().backward()
            optimizer.step()
        return model, optimizer

    saved = get_optimizer_state_dict(*at_half_of_its_peak(2))
    model, optimizer = at_half_of_its_peak(0)
    fresh = get_optimizer_state_dict(model, optimizer)
    in_place = {**fresh, "param_groups": [dict(group) for group in fresh["param_groups"]]}
    for group, of_saved in zip(in_place["param_groups"], saved["param_groups"], strict=True):
        group.update({name: of_saved[name] for name in group})  # as torch.distributed.checkpoint.load does
    set_optimizer_state_dict(model, optimizer, {**in_place, "state": saved["state"]})
    optimizer.step()
    assert optimizer.param_groups[0]["p"] == pytest.approx(6.0)


def test_p_is_p_max_at_the_first_step_of_a_warm_up_from_0():
    optimizer = make(p_schedule="lr")
    assert steps(optimizer, LambdaLR(optimizer, lambda step: min(step / 3, 1.0)), count=2)[0] == (10.0, 0.0)


def test_an_optimizer_of_another_kind_need_not_have_the_option():
    optimizer = make()
    del optimizer.param_groups[0]["p_schedule"]
    assert {p for p, _ in steps(optimizer)} == {10.0}


def test_nothing_is_said_where_p_max_is_written_by_hand():
    optimizer = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for share in (1.0, 0.6, 0.2):
            optimizer.param_groups[0].update(lr=0.1 * share, p_max=2 + 8 * share)
            assert steps(optimizer, count=1)[0][0] == 2 + 8 * share


@pytest.mark.parametrize("quiet", ["constant rate", "rising rate", "p_max of 2", "tied to a constant"])
def test_nothing_is_said_where_nothing_is_amiss(quiet):
    optimizer = make(p_max=2.0 if quiet == "p_max of 2" else 10.0)
    scheduler = LinearLR(optimizer, 0.1, 1.0, 10) if quiet == "rising rate" else None
    if quiet in ("p_max of 2", "tied to a constant"):
        scheduler = LinearLR(optimizer, 1.0, 0.1, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if quiet == "tied to a constant":
            tie_p_schedule(optimizer, scheduler, "constant")
        steps(optimizer, scheduler)


def test_the_state_of_a_measured_run_in_an_optimizer_that_has_measured_gives_no_warning():
    states = []
    for gradient in (0.5, 0.7):
        optimizer = make(p_schedule="lr", grad_rms="auto")
        for _ in range(25):
            for param in optimizer.param_groups[0]["params"]:
                param.grad = torch.full_like(param, gradient)
            optimizer.step()
        states.append(optimizer.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.load_state_dict(states[0])
        steps(optimizer, count=1)
