"""Stochastic rounding: against float64, over many draws, and alike to the bit in every implementation."""

import copy
import io

import pytest
import torch

from hf_lpsgd import LPSGD, LPSGDM
from hf_lpsgd.optim.kernels.choice import update
from hf_lpsgd.optim.kernels.hyperparameters import hyperparameters
from hf_lpsgd.optim.kernels.rounding import key_of_parameter, key_of_step, random_numbers, rounded
from hf_lpsgd.optim.kernels.tensors import Tensors

DRAWS = 1_000_000
LOW_PRECISION = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])


def draw(count, seed=0, step=0, number=0):
    key = key_of_parameter(key_of_step(seed, step), number)
    return random_numbers(key, torch.arange(count, dtype=torch.int32))


def neighbours(value, dtype):
    """The two values of `dtype` around `value`, by torch's nextafter."""
    near = torch.tensor(value, dtype=torch.float64).to(dtype)
    other = torch.nextafter(near, torch.tensor(torch.inf if near.double() < value else -torch.inf, dtype=dtype))
    return sorted([near.double().item(), other.double().item()])


@LOW_PRECISION
@pytest.mark.parametrize("value", [1.0009765625 + 2**-18, -0.3, 3e4 + 1.7, 3.1e-6, -1.3e-7, 2.0**-14 - 2.0**-27])
def test_a_value_becomes_one_of_its_two_neighbours_and_the_mean_is_the_value(dtype, value):
    value = torch.tensor(value).double().item()  # as float32 holds it
    result = rounded(torch.full((DRAWS,), value), draw(DRAWS), dtype).double()
    low, high = neighbours(value, dtype)
    assert sorted(result.unique().tolist()) == [low, high]
    share = (value - low) / (high - low)
    deviation = (share * (1 - share) / DRAWS) ** 0.5 + 2**-16
    assert ((result == high).double().mean() - share).abs() < 4 * deviation


@LOW_PRECISION
def test_what_the_dtype_holds_is_kept_whatever_is_drawn(dtype):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(dtype)
    for random in (0, 1, 2**15, 2**16 - 1):
        result = rounded(values.float(), torch.tensor(random), dtype)
        is_nan = values.isnan()
        assert result[is_nan].isnan().all()
        assert torch.equal(result[~is_nan].view(torch.int16), bits[~is_nan])


def test_random_numbers_are_uniform_and_know_nothing_of_each_other():
    first = draw(DRAWS)
    drawn = {
        "first": first,
        "next step": draw(DRAWS, step=1),
        "another parameter": draw(DRAWS, number=1),
        "another seed": draw(DRAWS, seed=1),
        "next element": first.roll(1),
        "next word": first.roll(2),
    }
    for name, values in drawn.items():
        counts = torch.bincount(values, minlength=2**16).double()
        chi2 = ((counts - DRAWS / 2**16) ** 2 / (DRAWS / 2**16)).sum() / 2**16
        assert 0.97 < chi2 < 1.03, name
    table = torch.stack(list(drawn.values())).double()
    assert (torch.corrcoef(table) - torch.eye(len(drawn))).abs().max() < 5 / DRAWS**0.5


def train(cls, params, grads, steps=3, **options):
    """`steps` steps at p = 2, where a step needs no power and all implementations compute the same float32 values."""
    params = [torch.nn.Parameter(param.clone(memory_format=torch.preserve_format)) for param in params]
    optimizer = cls(params, lr=0.01, p_max=2.0, rounding="stochastic", **options)
    for step in range(steps):
        for param, grad in zip(params, grads, strict=True):
            param.grad = torch.empty_like(param).copy_(grad.roll(step))
        optimizer.step()
    return [param.detach() for param in params], [
        optimizer.state[param]["momentum_buffer"] for param in params if param in optimizer.state
    ]


def tensors(dtype):
    torch.manual_seed(0)
    shapes = [(3, 5, 7, 4), (2100,), (1,), (0,), (33, 31)]
    params = [torch.randn(shape).to(dtype) for shape in shapes]
    params[1] *= torch.logspace(0, -9, 2100)  # with subnormal numbers
    params[0] = params[0].to(memory_format=torch.channels_last)
    params[4] = params[4].t()
    grads = [torch.randn(param.shape).to(dtype) for param in params]
    grads[1] *= torch.logspace(0, -9, 2100)
    return params, grads


@LOW_PRECISION
@pytest.mark.parametrize("name", ["foreach", "fused", "triton"])
def test_every_implementation_rounds_alike_to_the_bit(dtype, name, implement, kernel_calls):
    params, grads = tensors(dtype)
    # Momentum 0.5 and lr 2^-k keep the float32 values free of rounding, in whichever order they are computed.
    options = {"momentum": 0.5, "rounding_seed": 3}
    expected = train(LPSGDM, params, grads, **options, **implement("single"))
    found = train(LPSGDM, params, grads, **options, **implement(name))
    assert bool(kernel_calls) == (name == "triton" or (name == "fused" and dtype != torch.float16))
    for one, other in zip(expected[0] + expected[1], found[0] + found[1], strict=True):
        assert torch.equal(one, other)
    other_seed = train(LPSGDM, params, grads, momentum=0.5, rounding_seed=4, **implement(name))
    assert not torch.equal(found[0][1], other_seed[0][1])


@LOW_PRECISION
@pytest.mark.parametrize("name", ["single", "fused", "triton"])
def test_values_of_every_size_and_those_that_are_no_numbers_are_rounded_as_by_the_formula(dtype, name, implement):
    """Also those far above the subnormal numbers, whose distance from zero in units of these no int32 holds."""
    sizes = torch.cat(
        [torch.tensor([0.0, 6e-8, 2.0**-14, 65519.9, 65520.0, 3.4e38]), 10.0 ** torch.linspace(-44, 38, 999)]
    )
    values = torch.cat([sizes, -sizes, torch.tensor([torch.inf, -torch.inf, torch.nan])])
    values = torch.where(values.abs() < torch.finfo(torch.float32).tiny, 0.0 * values, values)
    param = torch.zeros(len(values), dtype=dtype)
    key = key_of_step(3, 0)
    hyper = hyperparameters(lr=1.0, p=2.0, eps=0.0, weight_decay=0.0, rounding=key)
    update(Tensors([param], [-values], None, [7]), hyper, **{"foreach": None, "fused": None, **implement(name)})
    places = torch.arange(len(values), dtype=torch.int32)
    expected = rounded(values, random_numbers(key_of_parameter(key, 7), places), dtype)
    torch.testing.assert_close(param, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["single", "fused", "triton"])
def test_a_tensor_without_a_common_memory_order_is_rounded_in_blocks_as_at_once(name, implement, monkeypatch):
    from hf_lpsgd.optim.kernels import torch_ops

    params = [torch.randn(60, 40).to(torch.bfloat16)]
    grads = [torch.randn(40, 60).to(torch.bfloat16).t()]

    def step():
        param = torch.nn.Parameter(params[0].clone())
        param.grad = grads[0]
        LPSGD([param], lr=0.01, p_max=2.0, rounding="stochastic", **implement(name)).step()
        return param.detach()

    at_once = step()
    monkeypatch.setattr(torch_ops, "_CPU_BLOCK", 100)
    assert torch.equal(step(), at_once)


@pytest.mark.parametrize("cls", [LPSGD, LPSGDM])
def test_a_thousand_small_steps_of_bfloat16_weights_move_them_by_what_they_should(cls):
    moved = {}
    for rounding in ("nearest", "stochastic"):
        param = torch.nn.Parameter(torch.ones(100_000, dtype=torch.bfloat16))
        optimizer = cls([param], lr=1e-5, p_max=1e6, rounding=rounding, **({"momentum": 0.0} if cls is LPSGDM else {}))
        for _ in range(1000):
            param.grad = torch.full_like(param, 0.5)
            optimizer.step()
        moved[rounding] = 1 - param.detach().double().mean().item()
    assert moved["nearest"] == 0
    assert moved["stochastic"] == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize("cls", [LPSGD, LPSGDM])
def test_a_resumed_run_is_the_uninterrupted_one(cls):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(50).to(torch.bfloat16)) for _ in range(2)]
    optimizer = cls(params, lr=0.01, rounding="stochastic", rounding_seed=5)

    def steps(params, optimizer, numbers):
        for number in numbers:
            for param in params:
                param.grad = torch.full_like(param, 0.1 * number)
            optimizer.step()

    steps(params, optimizer, range(1, 5))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twins = [copy.deepcopy(param) for param in params]
    resumed = cls(twins, lr=0.01, rounding="stochastic", rounding_seed=5)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    steps(params, optimizer, range(5, 9))
    steps(twins, resumed, range(5, 9))
    assert all(torch.equal(param, twin) for param, twin in zip(params, twins, strict=True))


def test_random_numbers_follow_the_parameter_and_not_which_others_have_gradients():
    torch.manual_seed(0)

    def step(with_first):
        params = [torch.nn.Parameter(torch.ones(64, dtype=torch.bfloat16)) for _ in range(3)]
        groups = [{"params": params[:1]}, {"params": params[1:]}]
        optimizer = LPSGD(groups, lr=1e-3, rounding="stochastic")
        for index, param in enumerate(params):
            if index > 0 or with_first:
                param.grad = torch.ones_like(param)
        optimizer.step()
        return [param.detach() for param in params]

    with_all, without = step(True), step(False)
    assert torch.equal(with_all[1], without[1])
    assert torch.equal(with_all[2], without[2])
    assert not torch.equal(with_all[0], with_all[1])
    assert not torch.equal(with_all[1], with_all[2])


def test_every_kind_of_checkpoint_finds_the_number_of_updates():
    (group,) = LPSGD([torch.ones(3)], rounding="stochastic").param_groups
    assert group["rounded_steps"] == 0
    (other,) = LPSGD([torch.ones(3)]).param_groups
    assert "rounded_steps" not in other


def test_groups_draw_other_numbers_also_where_an_engine_shows_them_one_at_a_time():
    params = [torch.nn.Parameter(torch.ones(64, dtype=torch.bfloat16)) for _ in range(2)]
    optimizer = LPSGD([{"params": [param]} for param in params], lr=1e-3, rounding="stochastic")
    groups = optimizer.param_groups
    for param, group in zip(params, groups, strict=True):
        param.grad = torch.ones_like(param)
        optimizer.param_groups = [group]  # as DeepSpeed's ZeRO does
        optimizer.step()
    optimizer.param_groups = groups
    assert not torch.equal(params[0].detach(), params[1].detach())


def test_a_step_that_a_cuda_graph_captures_is_refused_since_it_would_draw_the_same_numbers(monkeypatch):
    param = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = LPSGD([param], rounding="stochastic")
    param.grad = torch.ones_like(param)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(ValueError, match=r"rounding='stochastic' needs new random numbers at each step"):
        optimizer.step()
    assert torch.equal(param.detach(), torch.ones_like(param))
