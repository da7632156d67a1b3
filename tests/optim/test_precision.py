"""What 16 bits and rounding to the nearest lose is said once, and only where it is lost."""

import warnings

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, OneCycleLR

from hf_lpsgd import LPSGD, LPSGDM, step_in_backward

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture(autouse=True)
def said():
    """What was warned of in a test, but that p follows no learning rate."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: [text for one in caught if "p stays at p_max" not in (text := str(one.message))]


def weights(dtype=BF16, std=0.02):
    torch.manual_seed(0)
    return [torch.nn.Parameter((std * torch.randn(shape)).to(dtype)) for shape in ((64, 64), (64,))]


def train(params, optimizer, steps=10, scheduler=None):
    for _ in range(steps):
        for param in params:
            param.grad = torch.randn_like(param) * 1e-3
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


@pytest.mark.parametrize(
    ("momentum", "dtype", "options", "reached"),
    [
        (0.99, BF16, {}, "0.79"),
        (0.995, F32, {"momentum_dtype": "bfloat16"}, "0.65"),
        (0.999, BF16, {}, "0.27"),
        (0.999, F16, {}, "0.75"),
        (0.98, BF16, {}, None),
        (0.99, F16, {}, None),
        (0.999, F32, {}, None),
        (0.999, BF16, {"momentum_dtype": "float32"}, None),
        (0.999, BF16, {"rounding": "stochastic"}, None),
    ],
)
def test_a_momentum_that_stops_short_of_the_mean_is_told_once_at_construction(momentum, dtype, options, reached, said):
    params = weights(dtype)
    optimizer = LPSGDM(params, lr=1e-3, momentum=momentum, **options)
    found = said()
    assert len(found) == (reached is not None)
    if reached is not None:
        assert f"it reaches {reached} times" in found[0]
        assert "rounding=stochastic or momentum_dtype=float32" in found[0]
        assert "\n" not in found[0]
    train(params, optimizer)
    assert said() == found


def test_what_is_said_of_the_momentum_is_what_happens():
    grad = 10.0 ** torch.linspace(-3, 0, 4000)
    param = torch.nn.Parameter(torch.zeros(4000))
    optimizer = LPSGDM([param], lr=0.0, momentum=0.99, momentum_dtype="bfloat16")
    for _ in range(1000):
        param.grad = grad
        optimizer.step()
    assert (optimizer.state[param]["momentum_buffer"] / grad).mean() == pytest.approx(0.79, abs=0.02)


def test_frozen_parameters_have_no_momentum_to_tell_of(said):
    frozen, trained = weights(), weights(F32)
    for param in frozen:
        param.requires_grad = False
    LPSGDM([*frozen, *trained], momentum=0.999)
    assert said() == []


def test_parameters_that_an_engine_replaces_are_judged_when_they_are_stepped(said, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    params, masters = weights(), weights(F32)
    for replaced in (masters, params):
        optimizer = LPSGDM(params, lr=1e-3, momentum=0.999)
        assert said() == []
        optimizer.param_groups[0]["params"] = replaced
        train(replaced, optimizer)
    assert len(said()) == 1
    assert "momentum=0.999 is kept in bfloat16" in said()[0]


@pytest.mark.parametrize("cls", [LPSGD, LPSGDM])
@pytest.mark.parametrize("grad_rms", [None, "auto", 1e-3])
@pytest.mark.parametrize("layerwise", [False, True])
def test_rates_at_which_most_changes_are_dropped_are_told_once(cls, grad_rms, layerwise, said):
    params = weights()
    optimizer = cls(params, lr=1e-5, grad_rms=grad_rms)
    if layerwise:
        step_in_backward(optimizer)
    for _ in range(30):
        sum((param * torch.randn_like(param) * 1e-3).sum() for param in params).backward()
        optimizer.step()
        optimizer.zero_grad()
    (found,) = said()
    assert found.startswith("At a learning rate of 1e-05, a step can change ")
    assert "rounding=stochastic, or float32 weights" in found
    assert "\n" not in found


def test_what_is_said_of_the_weights_is_an_upper_bound_of_what_happens(said):
    params = weights()
    optimizer = LPSGD(params, lr=2e-5, grad_rms=1e-3)
    train(params, optimizer, 2)
    (found,) = said()
    share = float(found.split("can change ")[1].split("%")[0]) / 100
    before = params[0].detach().clone()
    train(params, optimizer, 1)
    assert share - 0.05 < (params[0] != before).double().mean() < share + 0.02


@pytest.mark.parametrize(
    ("dtype", "lr", "options"),
    [
        (BF16, 1e-3, {}),
        (BF16, 1e-3, {"grad_rms": "auto"}),
        (F16, 1e-4, {"grad_rms": "auto"}),
        (F32, 1e-6, {"grad_rms": "auto"}),
        (F32, 1e-5, {"momentum_dtype": "bfloat16"}),
        (BF16, 1e-5, {"rounding": "stochastic"}),
        (BF16, 0.0, {}),
        (BF16, torch.tensor(1e-5), {}),
    ],
    ids=str,
)
def test_nothing_is_said_where_changes_are_kept_or_unknown(dtype, lr, options, said):
    params = weights(dtype)
    train(params, LPSGDM(params, lr=lr, **options), 30)
    assert said() == []


def warm_up(optimizer):
    return LambdaLR(optimizer, lambda step: min(step / 10, 1.0))


def in_stages(optimizer):
    return LambdaLR(optimizer, lambda step: 0.01 * (1 + step // 10))


def one_cycle(optimizer):
    return OneCycleLR(
        optimizer, max_lr=optimizer.param_groups[0]["lr"], total_steps=50, pct_start=0.2, cycle_momentum=False
    )


def cyclic(optimizer):
    lr = optimizer.param_groups[0]["lr"]
    return CyclicLR(optimizer, base_lr=lr / 100, max_lr=lr, step_size_up=10, cycle_momentum=False)


@pytest.mark.parametrize("schedule", [warm_up, in_stages, one_cycle, cyclic])
def test_rates_are_judged_by_their_peak(schedule, said):
    for lr, is_told in ((1e-3, False), (1e-6, True)):
        params = weights()
        optimizer = LPSGDM(params, lr=lr, p_schedule="lr")
        train(params, optimizer, 25, schedule(optimizer))
        assert bool(said()) == is_told


def test_rates_that_a_loop_writes_itself_are_judged_when_they_no_longer_rise(said):
    for peak, is_told in ((1e-3, False), (1e-5, True)):
        params = weights()
        optimizer = LPSGDM(params, lr=peak)
        for step in range(20):
            optimizer.param_groups[0]["lr"] = peak * min((step + 1) / 10, 1.0)
            train(params, optimizer, 1)
            assert bool(said()) == (is_told and step > 9)


def test_a_resumed_run_is_judged_by_the_peak_that_lies_behind_it(said):
    params = weights()
    optimizer = LPSGDM(params, lr=1e-3)
    scheduler = LambdaLR(optimizer, lambda step: max(1 - step / 20, 0.01))
    train(params, optimizer, 1, scheduler)
    scheduler.step(19)
    state = optimizer.state_dict()
    resumed = LPSGDM(params, lr=1e-3)
    resumed.load_state_dict(state)
    train(params, resumed, 5)
    assert not any("can change" in one for one in said())


def test_shards_are_judged_by_what_this_process_holds(said):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        params = [torch.nn.Parameter(distribute_tensor(param.detach(), mesh, [Shard(0)])) for param in weights()]
        train(params, LPSGDM(params, lr=1e-5))
    finally:
        torch.distributed.destroy_process_group()
    assert sum("a step can change" in one for one in said()) == 1


def test_float32_weights_beside_those_in_16_bits_do_not_count(said):
    params = weights()
    heads = weights(F32)
    train([*params, *heads], LPSGDM([{"params": params, "lr": 1e-3}, {"params": heads, "lr": 1e-5}]))
    assert said() == []
    train([*params, *heads], LPSGDM([{"params": params, "lr": 1e-5}, {"params": heads, "lr": 1e-3}]))
    assert len(said()) == 1
