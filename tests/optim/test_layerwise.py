"""The step made in the backward pass: the weights of the ordinary step to the bit, with one gradient at a time."""

import gc
import warnings
import weakref
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from matrix import EACH_OPTIMIZER
from torch import nn

from hf_lpsgd import LPSGD, LPSGDM, step_in_backward, tie_p_schedule

STEPS = 30


class Tied(nn.Module):
    """Two layers share a weight; one is frozen; the output layer is used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(8, 8).requires_grad_(False)

    def forward(self, x):
        x = torch.tanh(self.second(torch.tanh(self.first(x))))
        return self.third(torch.tanh(self.third(self.frozen(x))))


def groups_of(model):
    return [
        {"params": [param for param in model.parameters() if param.dim() > 1], "weight_decay": 0.1},
        {"params": [param for param in model.parameters() if param.dim() <= 1]},
    ]


def train(cls, in_backward, dtype=torch.float32, warmup=5, steps=STEPS, first=0, model=None, state=None, **options):
    torch.manual_seed(0)
    model = model or Tied().to(dtype)
    optimizer = cls(groups_of(model), lr=1e-2, **options)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / warmup, 1.0) if warmup else 1.0)
    tie_p_schedule(optimizer, scheduler, num_training_steps=STEPS, num_warmup_steps=warmup)
    if state is not None:
        optimizer.load_state_dict(state[0])
        scheduler.load_state_dict(state[1])
    handle = step_in_backward(optimizer) if in_backward else None
    sizes = []
    for step in range(first, steps):
        generator = torch.Generator().manual_seed(step)
        model(torch.randn(4, 8, generator=generator).to(dtype)).square().mean().backward()
        assert all((param.grad is None) == in_backward for param in model.parameters() if param.requires_grad)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        sizes.append(optimizer.param_groups[0]["grad_rms"])
    if handle is not None:
        handle.remove()
    weights = [param.detach().clone() for param in model.parameters()]
    return weights, sizes, (model, optimizer.state_dict(), scheduler.state_dict())


def assert_same(one, other):
    assert one[1] == other[1]
    assert all(torch.equal(a, b) for a, b in zip(one[0], other[0], strict=True))


@EACH_OPTIMIZER
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"grad_rms": 0.01},
        {"grad_rms": "auto"},
        {"grad_rms": "auto", "foreach": True},
        {"grad_rms": "auto", "dtype": torch.bfloat16, "rounding": "stochastic"},
    ],
    ids=["paper", "number", "auto", "foreach", "bfloat16"],
)
def test_it_gives_the_weights_of_the_ordinary_step_to_the_bit(cls, options):
    ordinary = train(cls, False, **options)
    assert_same(train(cls, True, **options), ordinary)
    assert not torch.equal(ordinary[0][0], train(cls, False, steps=6, **options)[0][0])


@EACH_OPTIMIZER
def test_it_goes_on_with_the_state_of_the_ordinary_step_and_the_other_way_round(cls):
    options = {"grad_rms": "auto", "dtype": torch.bfloat16, "rounding": "stochastic"}
    whole = train(cls, False, **options)
    for before, after in ((True, False), (False, True)):
        _, _, (model, *state) = train(cls, before, steps=10, **options)
        later = train(cls, after, first=10, model=model, state=state, **options)
        assert all(torch.equal(a, b) for a, b in zip(later[0], whole[0], strict=True))


def test_the_first_update_with_auto_only_measures_as_in_the_ordinary_step():
    one, _, (_, state, _) = train(LPSGDM, True, warmup=0, steps=1, grad_rms="auto")
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(one, Tied().parameters(), strict=True))
    assert state["state"][0]["momentum_buffer"].abs().max() > 0
    assert_same(train(LPSGDM, True, warmup=0, grad_rms="auto"), train(LPSGDM, False, warmup=0, grad_rms="auto"))


def test_only_one_gradient_is_held_at_a_time():
    model = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(6)])
    optimizer = LPSGD(model.parameters(), lr=1e-3)
    held = []

    def count(param):
        held.append(sum(other.grad is not None for other in model.parameters()))

    for param in model.parameters():
        param.register_post_accumulate_grad_hook(count)
    step_in_backward(optimizer)
    model(torch.randn(2, 64)).sum().backward()
    assert held == [1] * 6


def test_a_second_backward_pass_before_the_step_is_refused():
    model = nn.Linear(2, 2)
    optimizer = LPSGD(model.parameters())
    step_in_backward(optimizer)
    model(torch.ones(1, 2)).sum().backward()
    with pytest.raises(
        RuntimeError, match=r"second gradient since the last optimizer.step\(\).*cannot be accumulated"
    ):
        model(torch.ones(1, 2)).sum().backward()
    before = [param.detach().clone() for param in model.parameters()]
    optimizer.step()  # the refused gradient is not applied
    assert all(torch.equal(param, old) for param, old in zip(model.parameters(), before, strict=True))
    model(torch.ones(1, 2)).sum().backward()
    assert not torch.equal(model.weight, before[0])


def test_a_backward_pass_that_is_no_training_step_is_an_ordinary_one():
    model = nn.Linear(2, 2)
    handle = step_in_backward(LPSGD(model.parameters()))
    handle.training = SimpleNamespace(calls=list, is_stepping=lambda: False)
    before = model.weight.detach().clone()
    for _ in range(2):  # a second one is no accumulation either
        model(torch.ones(1, 2)).sum().backward()
    assert torch.equal(model.weight, before)
    torch.testing.assert_close(model.weight.grad, torch.full((2, 2), 2.0))
    model.zero_grad()
    handle.training = None
    model(torch.ones(1, 2)).sum().backward()
    assert not torch.equal(model.weight, before)


def test_the_end_of_a_with_block_goes_back_to_the_ordinary_step_also_after_an_interruption():
    model = nn.Linear(2, 2)
    optimizer = LPSGD(model.parameters())
    with suppress(KeyboardInterrupt), step_in_backward(optimizer) as handle:
        assert optimizer.backward_step is handle
        raise KeyboardInterrupt
    assert optimizer.backward_step is None
    before = model.weight.detach().clone()
    model(torch.ones(1, 2)).sum().backward()
    assert torch.equal(model.weight, before)
    assert model.weight.grad is not None


def test_gradients_that_no_backward_pass_made_are_used_by_the_step():
    model = nn.Linear(2, 2)
    late = nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer = LPSGD([*model.parameters(), late], lr=0.1, p_max=2.0)
    step_in_backward(optimizer)
    late.requires_grad_(True)
    (model(torch.ones(1, 2)).sum() + late.sum()).backward()
    optimizer.step()
    torch.testing.assert_close(late.detach(), torch.full((2,), 0.9))
    assert late.grad is None


def test_remove_goes_back_to_the_ordinary_step():
    model = nn.Linear(2, 2)
    optimizer = LPSGD(model.parameters(), lr=0.1)
    handle = step_in_backward(optimizer)
    with pytest.raises(ValueError, match="This optimizer updates these parameters in the backward pass: remove that"):
        step_in_backward(optimizer)
    handle.remove()
    before = model.weight.detach().clone()
    model(torch.ones(1, 2)).sum().backward()
    assert torch.equal(model.weight.detach(), before)
    optimizer.step()
    assert not torch.equal(model.weight.detach(), before)


def test_another_optimizer_is_refused():
    with pytest.raises(TypeError, match="Only LPSGD and LPSGDM can step in the backward pass, not SGD"):
        step_in_backward(torch.optim.SGD([torch.ones(1)], lr=0.1))


def test_a_sparse_gradient_is_refused_in_the_backward_pass():
    model = nn.Embedding(5, 3, sparse=True)
    step_in_backward(LPSGD(model.parameters()))
    with pytest.raises(ValueError, match="LPSGD does not support sparse gradients"):
        model(torch.tensor([1])).sum().backward()


def test_groups_with_a_number_are_updated_from_the_first_step_and_not_measured():
    def run(in_backward):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        groups = [{"params": model[0].parameters()}, {"params": model[1].parameters(), "grad_rms": 0.01, "lr": 0.1}]
        optimizer = LPSGDM(groups, lr=0.0, grad_rms="auto")
        if in_backward:
            step_in_backward(optimizer)
        for step in range(3):
            model(torch.randn(4, 8, generator=torch.Generator().manual_seed(step))).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            optimizer.param_groups[0]["lr"] = 0.01
        return [param.detach() for param in model.parameters()], optimizer.param_groups[0]["grad_rms_measured"]

    ordinary, layerwise = run(False), run(True)
    assert ordinary[1] == layerwise[1]
    assert all(torch.equal(a, b) for a, b in zip(ordinary[0], layerwise[0], strict=True))


@pytest.mark.parametrize("mesh", [None, 1], ids=["plain", "shards over one of two processes"])
def test_several_processes_are_refused(mesh, monkeypatch):
    model = nn.Linear(2, 2)
    for param in model.parameters() if mesh else ():
        param.device_mesh = SimpleNamespace(size=lambda: mesh)
    step_in_backward(LPSGD(model.parameters()))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(RuntimeError, match="cannot train with 2 processes: they average their gradients afterwards"):
        model(torch.ones(1, 2)).sum().backward()


def test_two_optimizers_of_one_parameter_are_refused_until_the_first_lets_go():
    model = nn.Linear(2, 2)
    first, second = LPSGD(model.parameters()), LPSGDM(model.parameters())
    handle = step_in_backward(first)
    with pytest.raises(ValueError, match=r"Another optimizer updates these parameters .*: remove that first"):
        step_in_backward(second)
    handle.remove()
    later = step_in_backward(second)
    handle.remove()  # once more, which takes nothing from the other
    model(torch.ones(1, 2)).sum().backward()
    second.step()
    assert second.backward_step is later


def test_a_group_added_between_the_backward_pass_and_the_step_is_updated_by_the_step():
    model, late = nn.Linear(2, 2), nn.Parameter(torch.ones(2))
    optimizer = LPSGD(model.parameters(), lr=0.1, p_max=2.0)
    step_in_backward(optimizer)
    model(torch.ones(1, 2)).sum().backward()
    late.grad = torch.ones(2)
    optimizer.add_param_group({"params": [late]})
    optimizer.step()
    torch.testing.assert_close(late.detach(), torch.full((2,), 0.9))


def test_an_lr_scheduler_that_is_not_stepped_is_told_of_as_late_as_with_the_ordinary_step():
    def first_warning(in_backward):
        model = nn.Linear(2, 2)
        optimizer = LPSGD(model.parameters())
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        tie_p_schedule(optimizer, scheduler, num_training_steps=20)
        if in_backward:
            step_in_backward(optimizer)
        for step in range(10):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                model(torch.ones(1, 2)).sum().backward()
                optimizer.step()
            if any("has not moved" in str(warning.message) for warning in caught):
                return step
        return None

    assert first_warning(True) == first_warning(False) == 5


def test_the_removal_of_an_earlier_tie_leaves_the_later_one_in_force():
    model = nn.Linear(2, 2)
    optimizer = LPSGD(model.parameters(), p_max=20.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    earlier = tie_p_schedule(optimizer, scheduler, num_training_steps=3)
    tie_p_schedule(optimizer, scheduler, "linear", num_training_steps=3)
    earlier.remove()
    step_in_backward(optimizer)
    optimizer.param_groups[0]["p"] = 5.0
    with pytest.warns(UserWarning, match="p goes from 5 in the param group to 20"):
        model(torch.ones(1, 2)).sum().backward()
    assert optimizer.param_groups[0]["p"] == 20.0


def test_the_model_is_freed_with_its_optimizer():
    model = nn.Linear(2, 2)
    optimizer = LPSGD(model.parameters())
    step_in_backward(optimizer)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    weight = weakref.ref(model.weight)
    del model, optimizer
    gc.collect()
    assert weight() is None
