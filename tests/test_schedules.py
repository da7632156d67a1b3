import copy
from unittest.mock import MagicMock

import pytest
import torch
from reference import annealed_p, paper_p
from scheduled import P_MAX, STEPS, WARMUP, linear_warmup, make_optimizer, run
from torch.optim import lr_scheduler as torch_schedulers
from transformers import get_linear_schedule_with_warmup

from hf_lpsgd import LPSGD, LPSGDM, tie_p_schedule
from hf_lpsgd.optim.measurement import FEWEST_UPDATES, MEASURED
from hf_lpsgd.schedules import P_SCHEDULES, PScheduleRecord, current_tie
from hf_lpsgd.wrappers import unwrap_optimizer, unwrap_scheduler


def test_cosine_holds_p_max_through_the_warm_up_and_then_is_the_papers_formula_over_the_steps():
    optimizer = make_optimizer()
    scheduler = linear_warmup(optimizer)
    tie_p_schedule(optimizer, scheduler, "cosine", num_training_steps=STEPS, num_warmup_steps=WARMUP)
    ps, _ = run(optimizer, scheduler)
    annealed = [paper_p(P_MAX, s, STEPS - WARMUP) for s in range(1, STEPS - WARMUP + 1)]
    assert ps == pytest.approx([P_MAX] * WARMUP + annealed, rel=1e-12)
    assert ps[WARMUP] == P_MAX
    assert ps[-1] == 2.0


def test_linear_falls_by_equal_amounts_to_2():
    optimizer = make_optimizer()
    scheduler = linear_warmup(optimizer)
    tie_p_schedule(optimizer, scheduler, "linear", num_training_steps=STEPS, num_warmup_steps=WARMUP)
    ps, _ = run(optimizer, scheduler)
    falls = [a - b for a, b in zip(ps[WARMUP:], ps[WARMUP + 1 :], strict=False)]
    assert ps[: WARMUP + 1] == [P_MAX] * (WARMUP + 1)
    assert falls == pytest.approx([18 / 8] * 8)
    assert ps[-1] == 2.0


def test_lr_keeps_p_minus_2_in_proportion_to_the_learning_rate():
    optimizer = make_optimizer()
    scheduler = get_linear_schedule_with_warmup(optimizer, 4, STEPS)
    tie_p_schedule(optimizer, scheduler, "lr")
    ps, lrs = run(optimizer, scheduler)
    assert [p - 2 for p in ps] == pytest.approx([18 * lr / 0.1 for lr in lrs])
    assert max(ps) == P_MAX


def test_constant_stays_at_p_max():
    optimizer = make_optimizer()
    scheduler = linear_warmup(optimizer)
    tie_p_schedule(optimizer, scheduler, "constant")
    assert run(optimizer, scheduler)[0] == [P_MAX] * STEPS


@pytest.mark.parametrize("warmup", [0, 4])
def test_epoch_granularity_is_the_papers_p_s_to_the_letter_also_in_a_shorter_last_epoch(warmup):
    optimizer = make_optimizer()
    scheduler = linear_warmup(optimizer, steps=17)
    tie_p_schedule(
        optimizer,
        scheduler,
        "cosine",
        num_training_steps=17,
        num_warmup_steps=warmup,
        granularity="epoch",
        steps_per_epoch=5,
    )
    ps, _ = run(optimizer, scheduler, 17)
    expected = [paper_p(P_MAX, 1 + step // 5, 4) for step in range(17)]
    assert ps == pytest.approx([P_MAX] * warmup + expected[warmup:], rel=1e-12)


def test_a_scheduler_stepped_once_an_epoch_gives_the_papers_p_s():
    optimizer = make_optimizer()
    scheduler = torch_schedulers.CosineAnnealingLR(optimizer, 6)
    tie_p_schedule(optimizer, scheduler, "cosine", num_training_steps=6)
    ps, _ = run(optimizer, scheduler, 6)
    assert ps == pytest.approx([paper_p(P_MAX, s, 6) for s in range(1, 7)], rel=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize(("length", "made", "expected"), [(10, 99, 2.0), (1, 0, P_MAX)])
def test_p_stays_at_2_beyond_the_last_step_and_at_p_max_where_there_is_only_one(schedule, length, made, expected):
    optimizer = make_optimizer()
    scheduler = torch_schedulers.ConstantLR(optimizer)
    tie = tie_p_schedule(optimizer, scheduler, schedule, num_training_steps=length)
    scheduler.last_epoch = made
    assert tie.get_p() == [expected]


@pytest.mark.parametrize(("lr", "peak", "expected"), [(0.3, 0.1, P_MAX), (0.0, 0.0, P_MAX), (0.0, 0.1, 2.0)])
def test_a_learning_rate_beyond_its_peak_or_a_peak_of_0_gives_p_max(lr, peak, expected):
    optimizer = make_optimizer(lr=peak)
    tie = tie_p_schedule(optimizer, torch_schedulers.LinearLR(optimizer), "lr")
    optimizer.param_groups[0]["lr"] = lr
    assert tie.get_p() == [expected]


def test_each_group_falls_from_its_own_p_max():
    optimizer = make_optimizer()
    optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)], "p_max": 6.0, "lr": 0.4})
    scheduler = linear_warmup(optimizer)
    tie = tie_p_schedule(optimizer, scheduler, "lr")
    run(optimizer, scheduler, 7)
    share = optimizer.param_groups[0]["lr"] / 0.1
    assert tie.get_p() == pytest.approx([2 + 18 * share, 2 + 4 * share])


def test_p_depends_on_nothing_but_the_schedulers_state():
    optimizer = make_optimizer()
    scheduler = linear_warmup(optimizer)
    tie = tie_p_schedule(optimizer, scheduler, "cosine", num_training_steps=STEPS)
    run(optimizer, scheduler, 5)
    state = copy.deepcopy(scheduler.state_dict())
    fifth = tie.get_p()
    run(optimizer, scheduler, 4)
    assert tie.get_p() != fifth
    scheduler.load_state_dict(state)
    assert tie.get_p() == fifth


def test_steps_that_the_scheduler_does_not_make_leave_p_where_it_is():
    optimizer = make_optimizer()
    scheduler = linear_warmup(optimizer)
    tie_p_schedule(optimizer, scheduler, "cosine", num_training_steps=STEPS)
    run(optimizer, scheduler, 4)
    before = optimizer.param_groups[0]["p"]
    optimizer.step()
    now = optimizer.param_groups[0]["p"]
    optimizer.step()
    assert now < before
    assert optimizer.param_groups[0]["p"] == now


def test_tying_again_replaces_the_tie_and_without_one_p_is_p_max():
    optimizer = make_optimizer()
    scheduler = linear_warmup(optimizer)
    first = tie_p_schedule(optimizer, scheduler, "constant")
    tie = tie_p_schedule(optimizer, scheduler, "cosine", num_training_steps=STEPS)
    first.remove()
    assert current_tie(optimizer) is optimizer.tie is tie
    ps, _ = run(optimizer, scheduler, 6)
    assert ps[-1] < P_MAX
    tie.remove()
    assert current_tie(optimizer) is None
    assert run(optimizer, scheduler, 3)[0] == [P_MAX] * 3


def test_p_in_the_group_is_that_of_the_next_step_only_once_that_step_is_made():
    optimizer = make_optimizer()
    scheduler = linear_warmup(optimizer)
    tie = tie_p_schedule(optimizer, scheduler, "linear", num_training_steps=STEPS)
    optimizer.step()
    for _ in range(4):
        scheduler.step()
    assert (optimizer.param_groups[0]["p"], tie.get_p()) == (P_MAX, [annealed_p("linear", P_MAX, 4, STEPS)])
    optimizer.step()
    assert optimizer.param_groups[0]["p"] == tie.get_p()[0]


@pytest.mark.parametrize("schedule", [None, "constant", "cosine"])
def test_p_max_that_is_written_into_a_group_takes_effect(schedule):
    def train(p_max, write):
        param = torch.ones(3, requires_grad=True)
        optimizer = LPSGDM([param], lr=0.1, p_max=p_max)
        scheduler = linear_warmup(optimizer)
        if schedule is not None:
            tie_p_schedule(optimizer, scheduler, schedule, num_training_steps=STEPS)
        if write:
            optimizer.param_groups[0]["p_max"] = 6.0
        return run(optimizer, scheduler, 5)[0], param

    ps, param = train(P_MAX, True)
    expected, other = train(6.0, False)
    assert ps == expected
    assert ps[0] == 6.0
    assert torch.equal(param, other)


def measured(steps_of, updates, num_warmup_steps):
    """How many of the first `updates` updates "auto" measures; `steps_of` says how often each steps the scheduler."""
    param = torch.ones(3, requires_grad=True)
    optimizer = LPSGDM([param], lr=0.1, grad_rms="auto")
    scheduler = torch_schedulers.LambdaLR(optimizer, lambda step: 1.0)
    tie_p_schedule(optimizer, scheduler, "constant", num_warmup_steps=num_warmup_steps, steps_per_epoch=1)
    for update in range(updates):
        param.grad = torch.full_like(param, 1.0 + update)
        optimizer.step()
        for _ in range(steps_of(update)):
            scheduler.step()
    assert isinstance(optimizer.param_groups[0]["grad_rms"], float)
    return optimizer.param_groups[0][MEASURED][1]


@pytest.mark.parametrize(
    ("steps_of", "warmup", "window"),
    [
        (lambda update: 1, 0, FEWEST_UPDATES),
        (lambda update: 1, 30, 30),
        (lambda update: 4, 0, FEWEST_UPDATES),
        (lambda update: 4, 30, FEWEST_UPDATES),
        (lambda update: 4, 120, 30),
        (lambda update: int(update % 16 == 15), 0, FEWEST_UPDATES),
        (lambda update: int(update % 16 == 15), 2, 32),
        (lambda update: int(update % 40 == 39), 1, 40),
    ],
    ids=["each", "each, longer", "4", "4, shorter", "4, longer", "one in 16", "one in 16, longer", "one in 40"],
)
def test_the_window_of_the_measurement_counts_updates_whatever_the_scheduler_counts(steps_of, warmup, window):
    assert measured(steps_of, 60, warmup) == window


class Wrapper:
    """As Accelerate's and DeepSpeed's wrappers of an optimizer."""

    def __init__(self, optimizer):
        self.optimizer = optimizer


def test_a_tie_to_a_wrapped_optimizer_is_held_by_the_optimizer_itself():
    optimizer = make_optimizer()
    scheduler = linear_warmup(optimizer)
    wrapped = Wrapper(Wrapper(optimizer))
    tie = tie_p_schedule(wrapped, scheduler, "linear", num_training_steps=STEPS)
    assert optimizer.tie is tie is current_tie(wrapped)
    assert optimizer.partitions is None
    ps, _ = run(optimizer, scheduler)
    assert ps == pytest.approx([annealed_p("linear", P_MAX, step, STEPS) for step in range(STEPS)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "cosin"}, "Invalid p schedule: 'cosin'.* one of cosine, linear, lr, constant"),
        ({"granularity": "batch"}, "Invalid granularity: 'batch'.* one of step, epoch"),
        ({"num_training_steps": None}, "Invalid num_training_steps: None.*at least 1"),
        ({"num_training_steps": 0}, "Invalid num_training_steps: 0.*at least 1"),
        ({"num_training_steps": 2.5}, r"Invalid num_training_steps: 2\.5"),
        ({"num_warmup_steps": -1}, "Invalid num_warmup_steps: -1.*at least 0"),
        ({"granularity": "epoch"}, "Invalid steps_per_epoch: None.*at least 1 .*granularity 'epoch'"),
        (
            {"schedule": "lr", "granularity": "epoch"},
            "'lr' follows the learning rate step by step and knows no epochs",
        ),
        ({"schedule": "lr", "num_warmup_steps": None}, "Invalid num_warmup_steps: None"),
        ({"schedule": "constant", "num_training_steps": "abc"}, "Invalid num_training_steps: 'abc'"),
        ({"schedule": "lr", "steps_per_epoch": "x"}, "Invalid steps_per_epoch: 'x'"),
    ],
)
def test_bad_arguments_are_refused_in_one_line_and_tie_nothing(changes, message):
    optimizer = make_optimizer()
    arguments = {"schedule": "cosine", "num_training_steps": STEPS, **changes}
    with pytest.raises(ValueError, match=message) as caught:
        tie_p_schedule(optimizer, linear_warmup(optimizer), **arguments)
    assert "\n" not in str(caught.value)
    assert current_tie(optimizer) is None


def test_a_tie_that_is_refused_leaves_the_one_there_was():
    optimizer = make_optimizer()
    scheduler = linear_warmup(optimizer)
    tie = tie_p_schedule(optimizer, scheduler, "cosine", num_training_steps=STEPS)
    with pytest.raises(ValueError, match="num_warmup_steps"):
        tie_p_schedule(optimizer, scheduler, "lr", num_warmup_steps=None)
    assert current_tie(optimizer) is tie
    ps, _ = run(optimizer, scheduler)
    assert ps[-1] == 2.0


def test_objects_that_have_every_attribute_do_not_hang_the_search_for_an_optimizer():
    assert current_tie(torch.nn.Linear(1, 1)) is None
    assert not isinstance(unwrap_optimizer(MagicMock()), LPSGDM)
    unwrap_scheduler(MagicMock())


def test_an_optimizer_without_p_is_refused_by_name():
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
    with pytest.raises(ValueError, match="this optimizer is SGD"):
        tie_p_schedule(optimizer, linear_warmup(optimizer), "constant")


@pytest.mark.parametrize("schedule", ["cosine", "lr", "constant"])
def test_arguments_in_the_wrong_order_are_refused_with_the_right_one(schedule):
    optimizer = make_optimizer()
    scheduler = linear_warmup(optimizer)
    message = r"an optimizer and then its LR scheduler, but the second is an optimizer here, LPSGDM: swap them"
    for first, second in ((scheduler, optimizer), (Wrapper(scheduler), optimizer), (torch.nn.Linear(1, 1), optimizer)):
        with pytest.raises(ValueError, match=message):
            tie_p_schedule(first, second, schedule, num_training_steps=STEPS)
    assert current_tie(optimizer) is None


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_scheduler_that_counts_evaluations_is_refused_with_what_to_use_instead(schedule):
    optimizer = make_optimizer()
    scheduler = torch_schedulers.ReduceLROnPlateau(optimizer)
    with pytest.raises(ValueError, match=r"ReduceLROnPlateau does not count them\. Use the p schedule 'lr'"):
        tie_p_schedule(optimizer, scheduler, schedule, num_training_steps=STEPS)


def test_a_scheduler_that_does_not_count_is_refused_with_what_to_use_instead():
    class Mute:
        pass

    optimizer = make_optimizer(LPSGD)
    with pytest.raises(ValueError, match=r"Mute does not count them\. Use the p schedule 'lr' .*or 'constant'"):
        tie_p_schedule(optimizer, Mute(), "cosine", num_training_steps=STEPS)
    assert tie_p_schedule(optimizer, Mute(), "lr").get_p() == [P_MAX]


def test_a_schedule_may_read_both_the_progress_and_the_learning_rate(monkeypatch):
    both = PScheduleRecord(
        lambda place: (1 - place.progress) * place.lr_share, "a toy", needs_horizon=True, follows_lr=True
    )
    monkeypatch.setitem(P_SCHEDULES, "both", both)
    optimizer = LPSGDM([torch.ones(1, requires_grad=True)], lr=0.5, p_max=20)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, 4)
    tie = tie_p_schedule(optimizer, scheduler, "both", num_training_steps=5)
    ps = []
    for _ in range(5):
        optimizer.step()
        ps.append(tie.get_p()[0])
        scheduler.step()
    assert ps == pytest.approx([2 + 18 * (1 - step / 4) * (1 - 0.125 * step) for step in range(5)])
