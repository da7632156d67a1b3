"""What a tie notices in any loop: an LR scheduler that does not move, or moves others, and groups of other peaks."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from tied import STEPS, linear, make_optimizer, messages, step
from torch.optim import lr_scheduler as torch_schedulers
from torch.optim.swa_utils import SWALR

from hf_lpsgd import tie_p_schedule
from hf_lpsgd.wrappers import unwrap_optimizer

NOT_MOVED = "has not moved at 5 or more optimizer steps"


@pytest.mark.parametrize("schedule", ["cosine", "linear", "lr"])
def test_an_lr_scheduler_that_nobody_steps_is_warned_of_once(schedule):
    optimizer = make_optimizer()
    tie_p_schedule(optimizer, linear(optimizer), schedule, num_training_steps=STEPS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(5):
            step(optimizer)
        assert not messages(caught)
        for _ in range(20):
            step(optimizer)
    (message,) = messages(caught)
    assert f"p is tied to a LambdaLR that {NOT_MOVED}, and p is 20." in message
    assert "steps_per_epoch=1" in message


@pytest.mark.parametrize("schedule", ["cosine", "linear", "lr"])
@pytest.mark.parametrize("batches", [2, 3, 4, 5, 50])
def test_an_lr_scheduler_that_is_stepped_once_per_epoch_is_warned_of_once_however_short_the_epochs(batches, schedule):
    optimizer = make_optimizer()
    scheduler = linear(optimizer)
    tie_p_schedule(optimizer, scheduler, schedule, num_training_steps=STEPS)  # which are not those of the scheduler
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for made in range(1, STEPS):
            step(optimizer)
            if made % batches == 0:
                scheduler.step()
    (message,) = messages(caught)
    assert f"p is tied to a LambdaLR that {NOT_MOVED}, and p is " in message
    assert (
        "give num_training_steps and num_warmup_steps in epochs, as to the LR scheduler, and steps_per_epoch=1"
        in message
    )


@pytest.mark.parametrize("missed", [3, 4, 10])
def test_an_lr_scheduler_that_misses_a_step_now_and_then_or_makes_several_at_once_is_accepted(missed):
    optimizer = make_optimizer()
    scheduler = torch_schedulers.LambdaLR(optimizer, lambda step: 1.0)
    tie_p_schedule(optimizer, scheduler, num_training_steps=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for made in range(200):
            step(optimizer)
            for _ in range(0 if made % missed == 0 else 1 + made % 4):
                scheduler.step()


def test_an_lr_scheduler_that_another_replaces_in_the_middle_is_warned_of():
    optimizer = make_optimizer()
    scheduler = linear(optimizer)
    tie_p_schedule(optimizer, scheduler, num_training_steps=STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(STEPS // 2):
            step(optimizer)
            scheduler.step()
    averaging = SWALR(optimizer, swa_lr=0.05)
    for _ in range(5):
        step(optimizer)
        averaging.step()
    with pytest.warns(UserWarning, match=NOT_MOVED):
        step(optimizer)


class WarmUp(torch_schedulers.LRScheduler):
    """Rises over some steps, and from then on steps the scheduler that it holds."""

    def __init__(self, optimizer, steps, scheduler):
        self.steps, self.scheduler = steps, scheduler
        super().__init__(optimizer)

    def get_lr(self):
        return [base * (self.last_epoch + 1) / self.steps for base in self.base_lrs]

    def step(self, epoch=None):
        if self.last_epoch < self.steps:
            super().step()
        else:
            self.last_epoch += 1
            self.scheduler.step()


def test_of_schedulers_that_hold_others_the_outer_one_is_counted(recwarn):
    optimizer = make_optimizer()
    scheduler = WarmUp(optimizer, 8, linear(optimizer))
    tie_p_schedule(optimizer, scheduler, "linear", num_training_steps=STEPS + 8, num_warmup_steps=8)
    ps = []
    for _ in range(STEPS + 8):
        optimizer.step()
        ps.append(optimizer.param_groups[0]["p"])
        scheduler.step()
    assert ps == pytest.approx([20.0] * 8 + [20 - 18 * step / (STEPS - 1) for step in range(STEPS)])
    assert not [one for one in recwarn if "p is tied" in str(one.message)]


def test_p_that_follows_the_learning_rate_of_the_scheduler_that_took_over_is_accepted():
    optimizer = make_optimizer()
    tie_p_schedule(optimizer, linear(optimizer), "lr")
    other = linear(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(STEPS - 1):
            step(optimizer)
            other.step()
    assert optimizer.param_groups[0]["p"] < 3


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (linear, {"schedule": "constant"}),
        (linear, {"schedule": "cosine", "steps_per_epoch": 1}),
        (linear, {"schedule": "cosine", "granularity": "epoch", "steps_per_epoch": 1}),
        (linear, {"schedule": "lr", "steps_per_epoch": 1}),
        (torch_schedulers.ReduceLROnPlateau, {"schedule": "lr"}),
    ],
)
def test_a_scheduler_that_need_not_move_at_each_step_is_accepted(make, options):
    optimizer = make_optimizer()
    tie_p_schedule(optimizer, make(optimizer), num_training_steps=STEPS, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(30):
            step(optimizer)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_scheduler_that_rests_once_p_has_come_to_its_end_is_accepted(schedule):
    optimizer = make_optimizer()
    scheduler = torch_schedulers.OneCycleLR(optimizer, 0.1, total_steps=STEPS)  # which cannot step further
    tie_p_schedule(optimizer, scheduler, schedule, num_training_steps=STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for made in range(2 * STEPS):
            step(optimizer)
            if made < STEPS:
                scheduler.step()
    assert optimizer.param_groups[0]["p"] == 2.0


def test_an_engine_that_steps_its_many_groups_one_by_one_is_not_taken_for_many_steps():
    optimizer = make_optimizer(groups=12)
    scheduler = linear(optimizer)
    tie_p_schedule(optimizer, scheduler, num_training_steps=STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            every = optimizer.param_groups
            for group in every:  # as DeepSpeed's ZeRO-1 and ZeRO-2 do
                optimizer.param_groups = [group]
                step(optimizer)
            optimizer.param_groups = every
            scheduler.step()


def test_groups_that_are_stepped_one_by_one_keep_their_own_peaks():
    optimizer = make_optimizer(groups=2)
    optimizer.param_groups[1]["lr"] = 0.01
    scheduler = SimpleNamespace(last_epoch=0, max_lrs=[0.1, 0.01])
    tie_p_schedule(optimizer, scheduler, "lr")
    optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 0.05, 0.005
    every = optimizer.param_groups
    for group in every:
        optimizer.param_groups = [group]
        step(optimizer)
    assert [group["p"] for group in every] == pytest.approx([11.0, 11.0])


def test_a_group_that_is_added_later_has_p_max_at_the_rate_that_it_is_added_with():
    optimizer = make_optimizer()
    scheduler = torch_schedulers.ExponentialLR(optimizer, 0.5)
    tie_p_schedule(optimizer, scheduler, "lr")
    step(optimizer)
    scheduler.step()
    optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)], "lr": 0.01})
    step(optimizer)
    assert [group["p"] for group in optimizer.param_groups] == pytest.approx([11.0, 20.0])
    optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 0.025, 0.005
    step(optimizer)
    assert [group["p"] for group in optimizer.param_groups] == pytest.approx([6.5, 11.0])
    assert optimizer.state_dict()["param_groups"][1]["largest_lr"] == 0.01  # so that a resumed run knows it


def test_a_group_added_after_one_cycle_began_has_a_peak_too():
    optimizer = make_optimizer()
    tie = tie_p_schedule(optimizer, torch_schedulers.OneCycleLR(optimizer, max_lr=0.1, total_steps=STEPS), "lr")
    optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)], "lr": 0.01})
    assert tie.get_p()[1] == 20.0


class TimmScheduler:
    """As timm's schedulers: no torch scheduler, and what they set is multiplied by the group's `lr_scale`."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.step_update(0)

    def step_update(self, num_updates):
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * (1 - num_updates / STEPS) * group.get("lr_scale", 1.0)


def test_groups_with_a_layerwise_lr_scale_reach_p_max_under_a_scheduler_that_applies_it():
    optimizer = make_optimizer(groups=2)
    optimizer.param_groups[1]["lr_scale"] = 0.1
    scheduler = TimmScheduler(optimizer)
    tie_p_schedule(optimizer, scheduler, "lr")
    step(optimizer)
    assert [group["p"] for group in optimizer.param_groups] == [20.0, 20.0]
    scheduler.step_update(STEPS // 2)
    step(optimizer)
    assert [group["p"] for group in optimizer.param_groups] == pytest.approx([11.0, 11.0])


def test_a_scheduler_of_torch_does_not_know_lr_scale():
    optimizer = make_optimizer()
    optimizer.param_groups[0]["lr_scale"] = 0.1
    scheduler = linear(optimizer)
    tie_p_schedule(optimizer, scheduler, "lr")
    for _ in range(STEPS // 2):
        step(optimizer)
        scheduler.step()
    step(optimizer)
    assert optimizer.param_groups[0]["p"] == pytest.approx(11.0)


def test_wrappers_that_hold_the_optimizer_under_other_names_are_seen_through():
    optimizer = make_optimizer()
    wrapped = SimpleNamespace(optimizer=SimpleNamespace(optim=SimpleNamespace(base_optimizer=optimizer)))
    assert unwrap_optimizer(wrapped) is optimizer


def test_p_following_the_learning_rate_that_the_scheduler_of_another_optimizer_sets_is_warned_of():
    optimizer, other = make_optimizer(), make_optimizer()
    with pytest.warns(UserWarning, match="LambdaLR does not set: it was made for another LPSGDM"):
        tie_p_schedule(optimizer, linear(other), "lr")


class Holder(torch.optim.Optimizer):
    """Holds another optimizer under a name that is not looked at, and shares its groups."""

    def __init__(self, optimizer):
        self.held = optimizer
        self.__setstate__({"defaults": {}, "state": optimizer.state, "param_groups": optimizer.param_groups})


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        ("lr", linear),
        ("lr", lambda optimizer: linear(Holder(optimizer))),
        ("lr", lambda optimizer: SimpleNamespace(last_epoch=0)),
        ("cosine", lambda optimizer: linear(make_optimizer())),  # whose steps alone count
    ],
)
def test_a_scheduler_that_sets_this_optimizers_rate_or_need_not_is_accepted(schedule, make):
    optimizer = make_optimizer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tie_p_schedule(optimizer, make(optimizer), schedule, num_training_steps=STEPS)
