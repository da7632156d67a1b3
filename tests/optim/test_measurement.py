"""The measurement of the reference size: what counts, until when, and what a resumed or divided run goes on with."""

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from many_sizes import make, set_gradients
from matrix import EACH_OPTIMIZER
from reference import as_float64, root_mean_square

from hf_lpsgd import LPSGD, LPSGDM, tie_p_schedule
from hf_lpsgd.optim.measurement import FEWEST_UPDATES, MEASURED, reference_size
from hf_lpsgd.optim.shards import Partitions


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
