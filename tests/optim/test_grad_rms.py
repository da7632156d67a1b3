"""The step with a reference size of the gradient, given or measured, against a float64 reference."""

import math

import numpy as np
import pytest
import torch
from many_sizes import DECAY, LR, make, set_gradients
from matrix import EACH_OPTIMIZER
from reference import as_float64, rescaled, root_mean_square

from hf_lpsgd import LPSGD, LPSGDM
from hf_lpsgd.optim import functional
from hf_lpsgd.optim.measurement import FEWEST_UPDATES

BETA = 0.9
EPS = 1e-8
EVERY_IMPLEMENTATION = pytest.mark.parametrize("implementation", ["default", "single", "foreach", "fused", "triton"])


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
