"""LPSGD and LPSGDM as torch optimizers: groups, checkpoints, closures, hooks, bad input."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from matrix import EACH_OPTIMIZER
from reference import as_float64, lpsgd_step

from hf_lpsgd import LPSGD, LPSGDM, tie_p_schedule


def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))


def train(model, optimizer, scheduler=None, steps=5, first=0):
    for step in range(first, first + steps):
        inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(inputs).square().sum().backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def with_schedule(optimizer):
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    tie_p_schedule(optimizer, scheduler, "cosine", num_training_steps=20, num_warmup_steps=2)
    return scheduler


@EACH_OPTIMIZER
def test_p_starts_at_p_max_and_stays_there_until_a_schedule_is_tied(cls):
    model = make_model()
    optimizer = cls(model.parameters(), p_max=7.0)
    train(model, optimizer)
    assert [group["p"] for group in optimizer.param_groups] == [7.0]


def test_lpsgd_keeps_no_state_and_lpsgdm_one_tensor_of_the_parameters_shape_and_dtype():
    for cls, names in ((LPSGD, set()), (LPSGDM, {"momentum_buffer"})):
        model = make_model().to(torch.bfloat16)
        optimizer = cls(model.parameters())
        for param in model.parameters():
            param.grad = torch.ones_like(param)
        optimizer.step()
        for param in model.parameters():
            state = optimizer.state[param]
            assert set(state) == names
            assert all(t.shape == param.shape and t.dtype == param.dtype for t in state.values())


@EACH_OPTIMIZER
def test_a_run_continues_bit_for_bit_from_a_weights_only_checkpoint(cls):
    straight = make_model()
    optimizer = cls(straight.parameters(), lr=1e-2, p_max=20.0)
    scheduler = with_schedule(optimizer)
    train(straight, optimizer, scheduler, steps=8)
    file = io.BytesIO()
    state = {"model": straight.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    torch.save(state, file)
    train(straight, optimizer, scheduler, steps=12, first=8)

    resumed = make_model()
    optimizer = cls(resumed.parameters(), lr=0.5, p_max=3.0)
    scheduler = with_schedule(optimizer)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    train(resumed, optimizer, scheduler, steps=12, first=8)
    assert all(torch.equal(a, b) for a, b in zip(weights(straight), weights(resumed), strict=True))
    assert optimizer.param_groups[0]["p"] == 2.0


@EACH_OPTIMIZER
@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_and_pickles_continue_bit_for_bit(cls, copy_of):
    model = make_model()
    optimizer = cls(model.parameters(), lr=1e-2, p_max=20.0, weight_decay=0.1)
    train(model, optimizer)
    other_model, other_optimizer = copy_of((model, optimizer))
    train(model, optimizer, first=5)
    train(other_model, other_optimizer, first=5)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(other_model), strict=True))


@EACH_OPTIMIZER
def test_each_param_group_has_options_of_its_own(cls):
    params = [torch.ones(3, requires_grad=True) for _ in range(3)]
    groups = [
        {"params": [params[0]]},
        {"params": [params[1]], "lr": 0.5, "p_max": 3, "weight_decay": 0.1, "eps": 1e-4, "maximize": True},
    ]
    optimizer = cls(groups, lr=0.1, p_max=20)
    optimizer.add_param_group({"params": [params[2]], "p_max": 4})
    assert [group["p_max"] for group in optimizer.param_groups] == [20.0, 3.0, 4.0]
    assert [group["p"] for group in optimizer.param_groups] == [20.0, 3.0, 4.0]
    gradient = torch.tensor([1e-3, -2.0, 0.5])
    for param in params:
        param.grad = gradient.clone()
    optimizer.step()
    mean = as_float64(gradient) * (0.1 if cls is LPSGDM else 1.0)
    expected = [
        lpsgd_step(1.0, mean, lr=0.1, p=20),
        lpsgd_step(1.0, -mean, lr=0.5, p=3, weight_decay=0.1, eps=1e-4),
        lpsgd_step(1.0, mean, lr=0.1, p=4),
    ]
    for param, value in zip(params, expected, strict=True):
        np.testing.assert_allclose(as_float64(param), value, rtol=1e-5)


@EACH_OPTIMIZER
def test_maximize_ascends_and_still_decays_the_weights(cls):
    param = torch.tensor([1.0, -1.0], requires_grad=True)
    optimizer = cls([param], lr=0.1, p_max=1e6, weight_decay=0.5, maximize=True)
    param.grad = torch.tensor([2.0, 2.0])
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.tensor([0.95 + 0.1, -0.95 + 0.1]), rtol=1e-4, atol=0)


@EACH_OPTIMIZER
def test_step_returns_the_loss_of_its_closure_computed_with_gradients(cls):
    param = torch.tensor([1.0], requires_grad=True)
    optimizer = cls([param], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (param**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 1.0
    assert param.item() < 1.0
    assert optimizer.step() is None


@EACH_OPTIMIZER
def test_parameters_without_gradients_are_left_alone_and_get_no_state(cls):
    used, unused = (torch.ones(2, requires_grad=True) for _ in range(2))
    optimizer = cls([used, unused], weight_decay=0.5)
    used.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(unused, torch.ones(2))
    assert unused not in optimizer.state
    assert not torch.equal(used, torch.ones(2))


@EACH_OPTIMIZER
def test_a_tensor_learning_rate_steps_as_a_float_does(cls):
    results = []
    for lr in (0.05, torch.tensor(0.05)):
        model = make_model()
        optimizer = cls(model.parameters(), lr=lr)
        train(model, optimizer)
        results.append(weights(model))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@EACH_OPTIMIZER
def test_step_hooks_are_called(cls):
    calls = []
    param = torch.ones(1, requires_grad=True)
    optimizer = cls([param])
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    param.grad = torch.ones(1)
    optimizer.step()
    assert calls == ["before", "after"]


@EACH_OPTIMIZER
def test_a_checkpoint_without_newer_options_loads_with_their_defaults(cls):
    optimizer = cls([torch.ones(1, requires_grad=True)], p_max=5.0)
    state = optimizer.state_dict()
    for name in ("p", "maximize", "foreach", "fused"):
        del state["param_groups"][0][name]
    optimizer.load_state_dict(state)
    (group,) = optimizer.param_groups
    assert (group["p"], group["maximize"], group["foreach"], group["fused"]) == (5.0, False, None, None)


def test_a_checkpoint_of_another_optimizer_is_refused_in_one_line_and_changes_nothing():
    model, twin = make_model(), make_model()
    optimizer, untouched = LPSGDM(model.parameters(), p_max=6.0), LPSGDM(twin.parameters(), p_max=6.0)
    train(model, optimizer)
    train(twin, untouched)
    foreign = torch.optim.SGD(model.parameters(), momentum=0.9).state_dict()
    with pytest.raises(ValueError, match=r"holds no p_max and no eps .* not one of LPSGDM"):
        optimizer.load_state_dict(foreign)
    damaged = optimizer.state_dict()
    damaged["param_groups"][0]["p_max"] = float("nan")
    with pytest.raises(ValueError, match="Invalid p_max in the loaded state: nan"):
        optimizer.load_state_dict(damaged)
    train(model, optimizer, first=5)
    train(twin, untouched, first=5)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(twin), strict=True))


BAD_OPTIONS = [
    ("lr", -0.1, "at least 0"),
    ("lr", float("nan"), "at least 0"),
    ("lr", "fast", "at least 0"),
    ("lr", torch.tensor(-1.0), "at least 0"),
    ("p_max", 1.5, "at least 2"),
    ("p_max", float("nan"), "at least 2"),
    ("p_max", float("inf"), "at least 2"),
    ("p_max", 10**400, "at least 2"),
    ("p_max", "abc", "at least 2"),
    ("p_max", True, "at least 2"),
    ("eps", -1e-8, "at least 0"),
    ("eps", float("nan"), "at least 0"),
    ("weight_decay", -0.1, "at least 0"),
    ("weight_decay", None, "at least 0"),
    ("maximize", "yes", "True or False"),
    ("foreach", "maybe", "True, False or None"),
    ("fused", "maybe", "True, False or None"),
]
BAD_MOMENTA = [("momentum", value, "at least 0 and less than 1") for value in (1.0, -0.1, float("nan"), "big")]


@pytest.mark.parametrize(
    ("cls", "name", "value", "allowed"),
    [(cls, *bad) for cls in (LPSGD, LPSGDM) for bad in BAD_OPTIONS] + [(LPSGDM, *bad) for bad in BAD_MOMENTA],
)
def test_a_bad_option_is_refused_by_name_in_the_constructor_and_in_every_group(cls, name, value, allowed):
    def params():
        return [torch.ones(1, requires_grad=True)]

    with pytest.raises(ValueError, match=f"Invalid {name}") as caught:
        cls(params(), **{name: value})
    assert allowed in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=f"Invalid {name} in param group 1"):
        cls([{"params": params()}, {"params": params(), name: value}])
    optimizer = cls(params())
    with pytest.raises(ValueError, match=f"Invalid {name} in param group 1"):
        optimizer.add_param_group({"params": params(), name: value})
    assert len(optimizer.param_groups) == 1


@EACH_OPTIMIZER
def test_numbers_of_other_libraries_are_accepted_and_kept_as_plain_floats(cls):
    for number in (np.int64(3), torch.tensor(3.0), 3):
        optimizer = cls([torch.ones(1, requires_grad=True)], lr=np.float32(0.1), p_max=number)
        (group,) = optimizer.param_groups
        assert [type(group[name]) for name in ("lr", "p_max", "p")] == [float] * 3


@EACH_OPTIMIZER
def test_complex_parameters_are_refused_by_name(cls):
    named = [("weight", torch.ones(2, requires_grad=True)), ("phase", torch.ones(3, dtype=torch.complex64))]
    with pytest.raises(ValueError, match=r"complex parameters: the parameter 'phase' of shape \(3,\)"):
        cls(named)
    optimizer = cls([torch.ones(2, requires_grad=True)])
    with pytest.raises(ValueError, match="complex parameters: parameter 0"):
        optimizer.add_param_group({"params": [torch.ones(3, dtype=torch.complex64)]})
    assert len(optimizer.param_groups) == 1


@EACH_OPTIMIZER
def test_sparse_gradients_are_refused_by_name_before_anything_changes(cls):
    torch.manual_seed(0)
    model = torch.nn.Sequential()
    model.add_module("linear", torch.nn.Linear(2, 2))
    model.add_module("embedding", torch.nn.Embedding(5, 2, sparse=True))
    optimizer = cls(model.named_parameters())
    model.linear(model.embedding(torch.tensor([1, 2]))).sum().backward()
    before = weights(model)
    with pytest.raises(ValueError, match=r"sparse gradients, and the parameter 'embedding.weight' of shape \(5, 2\)"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
