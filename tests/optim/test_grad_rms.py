"""The step with a reference size of the gradient, given or measured, against a float64 reference."""

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from matrix import EACH_OPTIMIZER
from reference import as_float64, rescaled, root_mean_square

from hf_lpsgd import LPSGD, LPSGDM, tie_p_schedule
from hf_lpsgd.optim import functional
from hf_lpsgd.optim.measurement import FEWEST_UPDATES, MEASURED, reference_size
from hf_lpsgd.optim.shards import Partitions

SHAPES = [(37, 5), (1000,), (3, 4, 5), (1,)]
BETA, DECAY, LR = 0.9, 0.1, 0.01
EPS = 1e-8
EVERY_IMPLEMENTATION = pytest.mark.parametrize("implementation", ["default", "single", "foreach", "fused", "triton"])


def make(cls, *, groups=2, dtype=torch.float32, **options):
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in SHAPES]
    cut = [params] if groups == 1 else [params[:2], params[2:]]
    options = {"lr": LR, "p_max": 6.0, "weight_decay": DECAY, **options}
    return cls([{"params": some} for some in cut], **options), params


def set_gradients(params, step, scale=1e-3):
    generator = torch.Generator().manual_seed(1000 + step)
    for param in params:
        # Sizes of many orders of magnitude, as in a pretrained network with a new head.
        sizes = 10.0 ** (2 * torch.randn(param.shape, generator=generator))
        param.grad = (torch.randn(param.shape, generator=generator) * sizes * scale).to(param.dtype)


def p_at(step):
    """p falls from 6 to 2 in 40 steps."""
    return 2 + 4 * (1 + math.cos(math.pi * step / 40)) / 2


def compare_with_reference(cls, steps, size_of, *, rtol, params, optimizer, atol=1e-9):
    """Make `steps` steps beside the reference, whose size at each step `size_of` gives from the means so far."""
    thetas = [as_float64(param) for param in params]
    means = [np.zeros_like(theta) for theta in thetas]
    history = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["p_max"] = p_at(step)
        set_gradients(params, step)
        grads = [as_float64(param.grad) for param in params]
        optimizer.step()
        means = [BETA * mean + (1 - BETA) * grad for mean, grad in zip(means, grads, strict=True)]
        if cls is LPSGD:
            means = grads
        history.append(means)
        size = size_of(history)
        for index, (param, mean) in enumerate(zip(params, means, strict=True)):
            if size is not None:
                update = rescaled(mean, p=p_at(step), r=size / 10, eps=EPS * size) / 2
                thetas[index] = (1 - LR * DECAY) * thetas[index] - LR * update
            np.testing.assert_allclose(as_float64(param), thetas[index], rtol=rtol, atol=atol)
            thetas[index] = as_float64(param)  # so that each step is compared by itself


@EVERY_IMPLEMENTATION
@EACH_OPTIMIZER
def test_steps_with_a_given_size_match_the_reference_while_p_moves(cls, implementation, implement):
    optimizer, params = make(cls, grad_rms=3e-3, **implement(implementation))
    steps = 10 if implementation == "triton" else 40  # its interpreter is slow
    compare_with_reference(cls, steps, lambda _: 3e-3, rtol=1e-5, params=params, optimizer=optimizer, atol=1e-7)


@pytest.mark.covering
@EVERY_IMPLEMENTATION
@EACH_OPTIMIZER
def test_the_measured_size_is_that_of_the_updates_before_and_frozen_after_20(cls, implementation, implement):
    optimizer, params = make(cls, grad_rms="auto", **implement(implementation))

    def size(history):
        before = [root_mean_square(means) for means in history[:-1]]
        return np.mean(before[:FEWEST_UPDATES]) if before else None

    steps = FEWEST_UPDATES + (4 if implementation == "triton" else 20)
    compare_with_reference(cls, steps, size, rtol=1e-5, params=params, optimizer=optimizer, atol=1e-7)
    assert all(isinstance(group["grad_rms"], float) for group in optimizer.param_groups)


@EACH_OPTIMIZER
def test_float64_parameters_match_to_float64(cls):
    optimizer, params = make(cls, grad_rms=3e-3, dtype=torch.float64)
    compare_with_reference(cls, 20, lambda _: 3e-3, rtol=1e-12, params=params, optimizer=optimizer, atol=1e-15)


@EACH_OPTIMIZER
def test_the_number_that_was_measured_steps_as_the_run_that_measured_it(cls):
    measured, params = make(cls, grad_rms="auto")
    for step in range(FEWEST_UPDATES + 1):
        set_gradients(params, step)
        measured.step()
    given, twins = make(cls, grad_rms=measured.param_groups[0]["grad_rms"])
    for param, twin in zip(params, twins, strict=True):
        twin.data.copy_(param)
        if cls is LPSGDM:
            given.state[twin]["momentum_buffer"] = measured.state[param]["momentum_buffer"].clone()
    for step in range(5):
        set_gradients(params, step)
        set_gradients(twins, step)
        measured.step()
        given.step()
    assert all(torch.equal(param, twin) for param, twin in zip(params, twins, strict=True))


@EACH_OPTIMIZER
def test_the_first_update_measures_and_moves_nothing(cls):
    optimizer, params = make(cls, grad_rms="auto")
    before = [param.detach().clone() for param in params]
    for step in range(2):
        set_gradients(params, step)
        optimizer.step()
        assert all(torch.equal(param, old) for param, old in zip(params, before, strict=True)) == (step == 0)
    if cls is LPSGDM:
        assert all(optimizer.state[param]["momentum_buffer"].abs().max() > 0 for param in params)


@pytest.mark.parametrize("size", ["auto", "number"])
@EVERY_IMPLEMENTATION
@EACH_OPTIMIZER
def test_the_step_does_not_depend_on_the_unit_of_the_loss(cls, implementation, size, implement):
    moves = []
    for unit in (1e-2, 1e-9):
        optimizer, params = make(
            cls, grad_rms="auto" if size == "auto" else unit, weight_decay=0.0, **implement(implementation)
        )
        for param in params:
            param.data.zero_()
        for step in range(3):
            for param in params:
                generator = torch.Generator().manual_seed(step)
                param.grad = torch.randn(param.shape, generator=generator) * unit
            optimizer.step()
        moves.append([param.detach() for param in params])
    for move, other in zip(*moves, strict=True):
        assert move.abs().max() > LR / 4
        torch.testing.assert_close(move, other, rtol=2e-5, atol=2e-5 * LR)  # steps that cancel leave rounding


@EVERY_IMPLEMENTATION
@EACH_OPTIMIZER
def test_without_a_size_the_step_is_the_papers_bit_for_bit(cls, implementation, implement):
    options = implement(implementation)
    (one, params), (other, twins) = make(cls, grad_rms=None, **options), make(cls, **options)
    for step in range(5):
        for optimizer, some in ((one, params), (other, twins)):
            set_gradients(some, step)
            optimizer.step()
    assert one.state_dict()["param_groups"] == other.state_dict()["param_groups"]
    # The paper's step once more, by the function on tensors.
    triples = [param.detach().clone() for param in params]
    buffers = [one.state[param].get("momentum_buffer", param).clone() for param in params]
    set_gradients(params, 9)
    one.step()
    hyper = {"lr": LR, "p": 6.0, "eps": 1e-8, "weight_decay": DECAY, **options}
    grads = [param.grad for param in params]
    if cls is LPSGD:
        functional.lpsgd(triples, grads, **hyper)
    else:
        functional.lpsgdm(triples, grads, buffers, momentum=BETA, **hyper)
    for param, twin in zip(params, triples, strict=True):
        assert torch.equal(param, twin)


@pytest.mark.covering("cls", "implementation")
@pytest.mark.parametrize("p", [2.0, 2.5, 6.0, 50.0, 1e6])
@EVERY_IMPLEMENTATION
@EACH_OPTIMIZER
def test_no_element_moves_by_more_than_half_of_lr_and_those_from_a_tenth_of_the_size_on_by_it(
    cls, implementation, implement, p
):
    for size in (2e-2, "auto"):
        optimizer, params = make(cls, p_max=p, grad_rms=size, weight_decay=0.0, eps=0.0, **implement(implementation))
        for param in params:
            param.data.zero_()  # so that the change is not rounded
        for step in range(4):
            before = [param.detach().clone() for param in params]
            set_gradients(params, step)
            optimizer.step()
            for param, old in zip(params, before, strict=True):
                moved = (param.detach() - old).abs()
                assert moved.max() <= LR / 2 * (1 + 3e-6) + old.abs().max() * 1.2e-7
                if size != "auto" and step == 0:
                    mean = param.grad if cls is LPSGD else optimizer.state[param]["momentum_buffer"]
                    saturated = moved[mean.abs() >= size / 10]
                    torch.testing.assert_close(saturated, torch.full_like(saturated, LR / 2), rtol=3e-6, atol=0)


@EACH_OPTIMIZER
def test_weight_decay_is_not_scaled(cls):
    optimizer, params = make(cls, grad_rms=1e-6, groups=1)
    before = [param.detach().clone() for param in params]
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    for param, old in zip(params, before, strict=True):
        torch.testing.assert_close(param.detach(), old * (1 - LR * DECAY))


@EACH_OPTIMIZER
def test_nan_stays_nan_and_a_step_of_it_is_not_measured(cls, implement):
    for implementation in ("single", "foreach", "fused"):
        optimizer, params = make(cls, grad_rms="auto", **implement(implementation))
        set_gradients(params, 0)
        optimizer.step()
        measured = reference_size(optimizer.param_groups[0])
        for bad in (math.nan, math.inf):
            twin = copy.deepcopy(optimizer)
            some = [param for group in twin.param_groups for param in group["params"]]
            set_gradients(some, 1)
            some[1].grad[3] = bad
            twin.step()
            assert reference_size(twin.param_groups[0]) == measured
            if math.isnan(bad):
                assert some[1][3].isnan()


@EACH_OPTIMIZER
def test_frozen_parameters_groups_without_gradients_and_empty_steps_do_not_disturb(cls):
    optimizer, params = make(cls, grad_rms="auto")
    alone, twins = make(cls, grad_rms="auto")
    for step in range(FEWEST_UPDATES + 1):
        optimizer.step()  # without any gradient
        set_gradients(params, step)
        set_gradients(twins, step)
        for some in (params, twins):
            for param in some[2:]:
                param.grad = None
        optimizer.step()
        alone.step()
        for param in params:
            param.grad = None
    sizes = [group["grad_rms"] for group in (*optimizer.param_groups, *alone.param_groups)]
    assert isinstance(sizes[0], float)
    assert len(set(sizes)) == 1


def test_gradients_of_zeros_are_not_measured_nor_divided_by():
    optimizer, params = make(LPSGDM, grad_rms="auto", weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
    tie_p_schedule(optimizer, scheduler, num_training_steps=30)
    before = [param.detach().clone() for param in params]
    for param in params:
        param.grad = torch.zeros_like(param)
    for _ in range(2):
        optimizer.step()
    assert all(torch.equal(param, old) for param, old in zip(params, before, strict=True))
    assert reference_size(optimizer.param_groups[0]) is None
    set_gradients(params, 0)
    optimizer.step()
    assert reference_size(optimizer.param_groups[0]) > 0
    assert all(param.isfinite().all() for param in params)


@EACH_OPTIMIZER
def test_a_group_added_later_takes_the_size_in_force_while_it_is_measured_and_after(cls):
    for steps in (3, FEWEST_UPDATES + 1):
        optimizer, params = make(cls, grad_rms="auto")
        for step in range(steps):
            set_gradients(params, step)
            optimizer.step()
        optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)]})
        optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)], "grad_rms": 0.5})
        first, _, added, other = optimizer.param_groups
        assert added["grad_rms"] == first["grad_rms"]
        assert reference_size(added) == reference_size(first) > 0
        assert other["grad_rms"] == 0.5
        assert isinstance(first["grad_rms"], float) == (steps > FEWEST_UPDATES)


@EACH_OPTIMIZER
def test_groups_with_sizes_of_their_own_are_neither_measured_nor_changed(cls):
    optimizer, params = make(cls, grad_rms="auto")
    optimizer.param_groups[1]["grad_rms"] = 0.5
    del optimizer.param_groups[1][MEASURED]
    means = []
    for step in range(FEWEST_UPDATES + 1):
        set_gradients(params, step)
        optimizer.step()
        means.append(
            [as_float64(p.grad if cls is LPSGD else optimizer.state[p]["momentum_buffer"]) for p in params[:2]]
        )
    assert optimizer.param_groups[1]["grad_rms"] == 0.5
    expected = np.mean([root_mean_square(some) for some in means[:FEWEST_UPDATES]])
    assert optimizer.param_groups[0]["grad_rms"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "lr", "constant"])
def test_the_size_is_measured_over_the_whole_warm_up_whatever_the_p_schedule(schedule):
    optimizer, params = make(LPSGDM, grad_rms="auto")
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 30, 1.0))
    tie_p_schedule(optimizer, scheduler, schedule, num_training_steps=60, num_warmup_steps=30)
    for step in range(32):
        set_gradients(params, step)
        optimizer.step()
        scheduler.step()
        assert (optimizer.param_groups[0]["grad_rms"] == "auto") == (step < 30)
    assert optimizer.param_groups[0][MEASURED][1] == 30


@pytest.mark.parametrize("cut", [1, 7, FEWEST_UPDATES, FEWEST_UPDATES + 3])
@EACH_OPTIMIZER
def test_a_run_that_is_cut_while_it_measures_or_after_goes_on_bit_for_bit(cls, cut, tmp_path):
    def steps(optimizer, params, begin, end):
        for step in range(begin, end):
            set_gradients(params, step)
            optimizer.step()

    whole, params = make(cls, grad_rms="auto")
    steps(whole, params, 0, 30)
    first, some = make(cls, grad_rms="auto")
    steps(first, some, 0, cut)
    torch.save([param.detach() for param in some], tmp_path / "params.pt")
    torch.save(first.state_dict(), tmp_path / "optimizer.pt")
    second, others = make(cls, grad_rms="auto")
    for param, saved in zip(others, torch.load(tmp_path / "params.pt", weights_only=True), strict=True):
        param.data.copy_(saved)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    steps(second, others, cut, 30)
    assert second.state_dict()["param_groups"] == whole.state_dict()["param_groups"]
    for param, other in zip(params, others, strict=True):
        assert torch.equal(param, other)


def test_copies_and_pickles_measure_on_by_themselves():
    optimizer, params = make(LPSGDM, grad_rms="auto")
    set_gradients(params, 0)
    optimizer.step()
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        some = [param for group in twin.param_groups for param in group["params"]]
        for step in range(1, FEWEST_UPDATES + 1):
            set_gradients(some, step)
            twin.step()
        assert isinstance(twin.param_groups[0]["grad_rms"], float)
    assert optimizer.param_groups[0]["grad_rms"] == "auto"


def test_a_state_of_version_0_1_0_has_the_papers_step():
    optimizer, _ = make(LPSGDM)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        del group["grad_rms"]
    optimizer.load_state_dict(state)
    assert [group["grad_rms"] for group in optimizer.param_groups] == [None, None]
    asked, _ = make(LPSGDM, grad_rms="auto")
    with pytest.warns(UserWarning, match="grad_rms is None, not auto as requested"):
        asked.load_state_dict(state)


@EACH_OPTIMIZER
def test_an_engine_that_makes_an_update_by_several_calls_measures_what_one_call_does(cls):
    (whole, params), (pieces, others) = make(cls, grad_rms="auto"), make(cls, grad_rms="auto")
    for step in range(FEWEST_UPDATES + 5):
        set_gradients(params, step)
        set_gradients(others, step)
        whole.step()
        every = pieces.param_groups
        for group in every:  # as DeepSpeed's ZeRO-1 and ZeRO-2 do
            pieces.param_groups = [group]
            pieces.step()
        pieces.param_groups = every
    assert [group["grad_rms"] for group in whole.param_groups] == [group["grad_rms"] for group in pieces.param_groups]
    assert isinstance(whole.param_groups[0]["grad_rms"], float)
    for param, other in zip(params, others, strict=True):
        assert torch.equal(param, other)


def test_a_learning_rate_in_a_tensor_steps_as_a_number_does(implement):
    for implementation in ("single", "foreach", "fused", "triton"):
        options = implement(implementation)
        (one, params), (other, twins) = (
            make(LPSGDM, grad_rms="auto", **options),
            make(LPSGDM, grad_rms="auto", **options),
        )
        other.param_groups[0]["lr"] = other.param_groups[1]["lr"] = torch.tensor(LR)
        for step in range(3):
            set_gradients(params, step)
            set_gradients(twins, step)
            one.step()
            other.step()
        for param, twin in zip(params, twins, strict=True):
            torch.testing.assert_close(param, twin, rtol=1e-6, atol=1e-8)


@EACH_OPTIMIZER
def test_a_state_of_a_run_that_measured_is_loaded_into_one_that_measured_without_a_warning(cls):
    states = []
    for scale in (1e-3, 1e-2):
        optimizer, params = make(cls, grad_rms="auto")
        for step in range(FEWEST_UPDATES + 1):
            set_gradients(params, step, scale)
            optimizer.step()
        states.append(optimizer.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.load_state_dict(states[0])
    assert optimizer.param_groups[0]["grad_rms"] == states[0]["param_groups"][0]["grad_rms"]


def test_an_optimizer_never_communicates_on_its_own(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_, **__: pytest.fail("an all-reduce"))
    optimizer, params = make(LPSGDM, grad_rms="auto")
    for step in range(FEWEST_UPDATES + 5):
        set_gradients(params, step)
        optimizer.step()
    assert isinstance(optimizer.param_groups[0]["grad_rms"], float)


def test_partitions_are_added_up_over_their_group_without_their_padding(monkeypatch):
    groups = []

    def double(numbers, group):  # another process that holds just the same
        groups.append(group)
        numbers.mul_(2)

    monkeypatch.setattr(torch.distributed, "all_reduce", double)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda group: "gloo")
    optimizer, params = make(LPSGD, grad_rms="auto")
    padded = params[1]
    optimizer.partitions = Partitions("the group", {id(padded): 100})
    for step in range(FEWEST_UPDATES + 5):
        set_gradients(params, step)
        padded.grad[-100:] = 0
        optimizer.step()
        if step == 0:
            elements = [as_float64(param.grad).ravel() for param in params]
            elements[1] = elements[1][:-100]
            expected = root_mean_square(elements)
            assert reference_size(optimizer.param_groups[0]) == pytest.approx(expected, rel=1e-6)
    assert groups == ["the group"] * FEWEST_UPDATES


@EACH_OPTIMIZER
def test_a_number_written_into_one_group_leaves_the_others_measuring_also_after_a_resume(cls):
    optimizer, params = make(cls, grad_rms="auto")
    set_gradients(params, 0)
    optimizer.step()
    optimizer.param_groups[0]["grad_rms"] = 7.0
    twin = copy.deepcopy(optimizer)
    twin.load_state_dict(optimizer.state_dict())
    for one in (optimizer, twin):
        set_gradients([param for group in one.param_groups for param in group["params"]], 1)
        one.step()
        assert [group["grad_rms"] for group in one.param_groups] == [7.0, "auto"]


def test_a_compiled_step_that_would_measure_is_refused_in_one_line(monkeypatch):
    optimizer, params = make(LPSGDM, grad_rms="auto")
    set_gradients(params, 0)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with pytest.raises(ValueError, match=r"grad_rms='auto' reads what it measures .* torch\.compile does not"):
        optimizer.step()


@EVERY_IMPLEMENTATION
@EACH_OPTIMIZER
def test_empty_tensors_among_others_change_nothing(cls, implementation, implement):
    results = []
    options = implement(implementation)
    for empty in (0, 2):
        params = [torch.nn.Parameter(torch.ones(5)), *[torch.nn.Parameter(torch.ones(0, 3)) for _ in range(empty)]]
        optimizer = cls(params, grad_rms="auto", **options)
        for _ in range(3):
            for param in params:
                param.grad = torch.full_like(param, 0.1)
            optimizer.step()
        results.append(params[0].detach())
    assert torch.equal(*results)
