"""p_schedule="lr" with the LR schedulers of torch: the peak of each, found at once or as the rate rises."""

import pytest
from reference import annealed_p
from scheduled import P_MAX, STEPS, make_optimizer, run
from torch.optim import lr_scheduler as torch_schedulers

from hf_lpsgd import tie_p_schedule


def test_lr_on_plateau_falls_with_the_learning_rate_also_after_a_resume():
    def plateau(optimizer):
        return torch_schedulers.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)

    optimizer = make_optimizer()
    scheduler = plateau(optimizer)
    tie = tie_p_schedule(optimizer, scheduler, "lr")
    for metric in (1.0, 1.0, 1.0):
        scheduler.step(metric)
    assert tie.get_p() == [2 + 18 / 4]

    resumed = make_optimizer()
    scheduler_of_resumed = plateau(resumed)
    resumed.load_state_dict(optimizer.state_dict())
    scheduler_of_resumed.load_state_dict(scheduler.state_dict())
    assert tie_p_schedule(resumed, scheduler_of_resumed, "lr").get_p() == [2 + 18 / 4]


def test_lr_knows_the_peak_of_one_cycle_and_cyclic_schedulers():
    optimizer = make_optimizer()
    scheduler = torch_schedulers.OneCycleLR(optimizer, max_lr=0.4, total_steps=STEPS, cycle_momentum=False)
    tie_p_schedule(optimizer, scheduler, "lr")
    ps, lrs = run(optimizer, scheduler, STEPS - 1)
    assert [p - 2 for p in ps] == pytest.approx([18 * lr / 0.4 for lr in lrs])
    optimizer = make_optimizer()
    scheduler = torch_schedulers.CyclicLR(optimizer, 0.1, 0.5, step_size_up=4, cycle_momentum=False)
    tie_p_schedule(optimizer, scheduler, "lr")
    ps, lrs = run(optimizer, scheduler, 9)
    assert [p - 2 for p in ps] == pytest.approx([18 * lr / 0.5 for lr in lrs])


def warm_up_then(make):
    def sequential(optimizer):
        parts = [torch_schedulers.LinearLR(optimizer, 0.1, total_iters=4), make(optimizer)]
        return torch_schedulers.SequentialLR(optimizer, parts, milestones=[4])

    return sequential


class Counting:
    """A factor that is an object with a state, as torch's LambdaLR allows and keeps in checkpoints."""

    def __init__(self):
        self.calls = 0

    def __call__(self, step):
        self.calls += 1
        return 0.3 * 0.5**step


TABLE = [0.2, 0.5, 0.9, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.0]  # of STEPS + 1 factors
FOUND_AT_ONCE = {
    "small factor": lambda optimizer: torch_schedulers.LambdaLR(optimizer, lambda step: 1e-3 * (1 - step / STEPS)),
    "large factor": lambda optimizer: torch_schedulers.LambdaLR(optimizer, lambda step: 10 * (1 - step / STEPS)),
    "an object": lambda optimizer: torch_schedulers.LambdaLR(optimizer, Counting()),
    "a low first part": lambda optimizer: torch_schedulers.ConstantLR(optimizer, 0.1, total_iters=3),
    "a line that ends low": lambda optimizer: torch_schedulers.LinearLR(optimizer, 0.1, 0.5, total_iters=4),
    "products": lambda optimizer: torch_schedulers.MultiplicativeLR(optimizer, lambda step: 0.9),
    "restarts": lambda optimizer: torch_schedulers.CosineAnnealingWarmRestarts(optimizer, 5),
    "in turn": warm_up_then(lambda optimizer: torch_schedulers.CosineAnnealingLR(optimizer, STEPS - 4)),
    "in turn, restarts": warm_up_then(lambda optimizer: torch_schedulers.CosineAnnealingWarmRestarts(optimizer, 4)),
}


@pytest.mark.parametrize("make", FOUND_AT_ONCE.values(), ids=FOUND_AT_ONCE)
def test_lr_goes_by_the_peak_of_the_schedule_itself_whatever_rate_the_optimizer_was_given(make):
    optimizer = make_optimizer()
    scheduler = make(optimizer)
    plain = repr(make(make_optimizer()).state_dict())
    tie_p_schedule(optimizer, scheduler, "lr", num_training_steps=STEPS).get_p()
    assert repr(scheduler.state_dict()) == plain
    ps, lrs = run(optimizer, scheduler)
    assert ps == pytest.approx([2 + 18 * lr / max(lrs) for lr in lrs])
    assert max(ps) == pytest.approx(P_MAX)


FOUND_AS_THEY_RISE = {
    "late peak": lambda optimizer: torch_schedulers.LambdaLR(optimizer, lambda step: 3 - abs(step - 7) / 4),
    "a table": lambda optimizer: torch_schedulers.LambdaLR(optimizer, lambda step: TABLE[step]),
    "rising": lambda optimizer: torch_schedulers.ExponentialLR(optimizer, 1.3),
    "rising to the end": lambda optimizer: torch_schedulers.CosineAnnealingLR(optimizer, STEPS - 1, eta_min=0.7),
    "in turn, of a small factor": lambda optimizer: torch_schedulers.SequentialLR(
        optimizer,
        [
            torch_schedulers.LambdaLR(optimizer, lambda step: 1e-3 * (step + 1) / 5),
            torch_schedulers.LambdaLR(optimizer, lambda step: 1e-3 * (1 - step / STEPS)),
        ],
        milestones=[5],
    ),
    "together, products": lambda optimizer: torch_schedulers.ChainedScheduler(
        [torch_schedulers.LinearLR(optimizer, 0.1, total_iters=4), torch_schedulers.ExponentialLR(optimizer, 0.8)]
    ),
    "together, one": lambda optimizer: torch_schedulers.ChainedScheduler(
        [torch_schedulers.CyclicLR(optimizer, 0.1, 0.5, step_size_up=4, cycle_momentum=False)]
    ),
}


@pytest.mark.parametrize("make", FOUND_AS_THEY_RISE.values(), ids=FOUND_AS_THEY_RISE)
def test_lr_holds_p_max_while_a_rate_rises_whose_peak_nobody_can_know_ahead(make):
    optimizer = make_optimizer()
    scheduler = make(optimizer)
    tie_p_schedule(optimizer, scheduler, "lr", num_training_steps=STEPS)
    ps, lrs = run(optimizer, scheduler)
    assert ps == pytest.approx([2 + 18 * lr / max(lrs[: step + 1]) for step, lr in enumerate(lrs)])


def test_lr_calls_no_function_of_the_user():
    calls = []
    optimizer = make_optimizer()
    scheduler = torch_schedulers.LambdaLR(optimizer, lambda step: calls.append(step) or 1.0)
    tie_p_schedule(optimizer, scheduler, "lr", num_training_steps=STEPS).get_p()
    optimizer.step()
    assert calls == [0]  # by torch, when the scheduler was made


class OwnRates(torch_schedulers.StepLR):
    """Rates that nobody can know ahead: it overrides those of the class that it is derived from."""

    def __init__(self, optimizer):
        super().__init__(optimizer, 1)

    def get_lr(self):
        return [base * TABLE[self.last_epoch] / 100 for base in self.base_lrs]


@pytest.mark.parametrize(("saved_at", "tie_first"), [(None, True), (2, True), (6, True), (6, False)])
def test_lr_goes_by_the_largest_rate_so_far_where_the_peak_cannot_be_known_ahead_also_in_a_resumed_run(
    saved_at, tie_first
):
    optimizer = make_optimizer(lr=1.0)
    scheduler = OwnRates(optimizer)
    tie_p_schedule(optimizer, scheduler, "lr", num_training_steps=STEPS)
    ps, lrs = run(optimizer, scheduler, STEPS if saved_at is None else saved_at)
    if saved_at is not None:
        resumed = make_optimizer(lr=1.0)
        scheduler_of_resumed = OwnRates(resumed)
        if tie_first:
            tie_p_schedule(resumed, scheduler_of_resumed, "lr", num_training_steps=STEPS)
        resumed.load_state_dict(optimizer.state_dict())
        scheduler_of_resumed.load_state_dict(scheduler.state_dict())
        if not tie_first:
            tie_p_schedule(resumed, scheduler_of_resumed, "lr", num_training_steps=STEPS)
        later = run(resumed, scheduler_of_resumed, STEPS - saved_at)
        ps, lrs = ps + later[0], lrs + later[1]
    assert ps == pytest.approx([2 + 18 * lr / max(lrs[: step + 1]) for step, lr in enumerate(lrs)])


def test_lr_goes_by_the_rates_of_this_run_where_an_earlier_one_had_larger_rates():
    optimizer = make_optimizer()
    for size in (1.0, 1e-2):
        scheduler = torch_schedulers.LambdaLR(optimizer, lambda step, size=size: size * (1 - step / STEPS))
        tie_p_schedule(optimizer, scheduler, "lr", num_training_steps=STEPS)
        ps, _ = run(optimizer, scheduler)
        assert ps == pytest.approx([2 + 18 * (1 - step / STEPS) for step in range(STEPS)])


def test_schedulers_made_of_others_are_counted():
    optimizer = make_optimizer()
    parts = [torch_schedulers.ConstantLR(optimizer, 0.5, 2), torch_schedulers.ExponentialLR(optimizer, 0.9)]
    chained = torch_schedulers.ChainedScheduler(parts)
    tie = tie_p_schedule(optimizer, chained, "linear", num_training_steps=STEPS)
    run(optimizer, chained, 5)
    assert tie.get_p() == pytest.approx([annealed_p("linear", P_MAX, 5, STEPS)])
    optimizer = make_optimizer()
    parts = [torch_schedulers.LinearLR(optimizer), torch_schedulers.ExponentialLR(optimizer, 0.9)]
    sequential = torch_schedulers.SequentialLR(optimizer, parts, milestones=[3])
    tie = tie_p_schedule(optimizer, sequential, "linear", num_training_steps=STEPS)
    run(optimizer, sequential, 5)
    assert tie.get_p() == pytest.approx([annealed_p("linear", P_MAX, 5, STEPS)])


def test_lr_forgets_the_peak_of_an_earlier_scheduler():
    optimizer = make_optimizer()
    torch_schedulers.OneCycleLR(optimizer, max_lr=1.0, total_steps=STEPS, cycle_momentum=False)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = 0.1
    tie = tie_p_schedule(optimizer, torch_schedulers.CosineAnnealingLR(optimizer, STEPS), "lr")
    assert tie.get_p() == [P_MAX]
