"""`momentum_dtype="float8"`: a byte per parameter, whose mean is exact, alike to the bit in every implementation."""

import copy
import io
import pickle

import pytest
import torch

from hf_lpsgd import LPSGDM, step_in_backward
from hf_lpsgd.optim import functional
from hf_lpsgd.optim.kernels.choice import update
from hf_lpsgd.optim.kernels.hyperparameters import hyperparameters
from hf_lpsgd.optim.kernels.rounding import (
    FLOAT8,
    from_float8,
    key_of_parameter,
    key_of_step,
    random_numbers,
    rounded,
)
from hf_lpsgd.optim.kernels.tensors import Tensors

DRAWS = 1_000_000
LARGEST = 57344.0
IMPLEMENTATIONS = pytest.mark.parametrize("name", ["single", "foreach", "fused", "triton"])
# numpy tells of the arithmetic of the interpreted Triton kernel.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
EACH_SIZE = pytest.mark.parametrize("grad_rms", ["auto", 0.01])


def draw(count, step=0):
    return random_numbers(key_of_parameter(key_of_step(0, step), 0), torch.arange(count, dtype=torch.int32))


def momentum_of(optimizer, param, group=0):
    unit = optimizer.param_groups[group]["momentum_unit"]
    return from_float8(optimizer.state[param]["momentum_buffer"], unit, torch.float64)


def make(shapes=((300, 7), (41,)), dtype=torch.float32, **options):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]
    float8 = {"momentum_dtype": "float8", "grad_rms": "auto", "rounding": "stochastic"}
    return params, LPSGDM(params, **{"lr": 0.01, "momentum": 0.6, **float8, **options})


def steps(params, optimizer, numbers, scale=1e-3):
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        for param in params:
            param.grad = (scale * torch.randn(param.shape, generator=generator)).to(param.dtype)
        optimizer.step()


def equal(params, optimizer, twins, other):
    buffers = [
        [opt.state[one]["momentum_buffer"] for one in them] for opt, them in ((optimizer, params), (other, twins))
    ]
    return all(map(torch.equal, params, twins)) and all(map(torch.equal, *buffers))


def test_its_bits_are_those_of_torchs_float8_e5m2():
    codes = torch.arange(256, dtype=torch.uint8)
    for unit in (1.0, 2.0**-90, 2.0**40):
        expected = codes.view(torch.float8_e5m2).double() * unit
        torch.testing.assert_close(from_float8(codes, unit, torch.float64), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("unit", [1.0, 2.0**-30])
@pytest.mark.parametrize("value", [1.1, -0.3, 5e4, 2.0**-14 - 2.0**-20, 3.1e-5, -1e-6])
def test_a_value_becomes_one_of_its_two_neighbours_and_the_mean_over_a_million_draws_is_the_value(value, unit):
    value = torch.tensor(value).double().item()  # as float32 holds it
    codes = rounded(torch.full((DRAWS,), value * unit), draw(DRAWS), FLOAT8, unit)
    result = from_float8(codes, unit, torch.float64) / unit
    low, high = result.min().item(), result.max().item()
    assert sorted(result.unique().tolist()) == sorted({low, high})
    assert low <= value <= high
    assert high - low <= max(abs(value) / 4, 2.0**-16)
    share = (value - low) / (high - low)
    deviation = (share * (1 - share) / DRAWS) ** 0.5 + 2**-16
    assert ((result == high).double().mean() - share).abs() < 4 * deviation


def test_what_it_holds_is_kept_whatever_is_drawn():
    codes = torch.arange(256, dtype=torch.uint8)
    values = from_float8(codes, 2.0**-9, torch.float32)
    for random in (0, 1, 2**15, 2**16 - 1):
        result = rounded(values, random, FLOAT8, 2.0**-9)
        assert torch.equal(result[~values.isnan()], codes[~values.isnan()])
        assert from_float8(result[values.isnan()], 1.0, torch.float32).isnan().all()


@IMPLEMENTATIONS
@pytest.mark.parametrize("unit", [1.0, 2.0**-100, 2.0**80])
def test_values_of_every_size_are_rounded_as_by_the_formula_and_what_is_finite_stays_so(name, unit, implement):
    sizes = torch.cat([torch.tensor([0.0, 5e4, LARGEST, LARGEST + 1, 3.4e38]), 10.0 ** torch.linspace(-37, 38, 999)])
    values = torch.cat([sizes, -sizes[1:]])
    param, buffer, key = torch.zeros_like(values), torch.zeros(len(values), dtype=FLOAT8), key_of_step(3, 0)
    options = {"lr": 0.0, "p": 2.0, "eps": 0.0, "weight_decay": 0.0, "grad_rms": 1.0, "momentum": 0.0}
    hyper = hyperparameters(**options, rounding=key, momentum_unit=unit)
    switches = {"foreach": None, "fused": None, **implement(name)}
    update(Tensors([param], [values], [buffer], [7]), hyper, **switches)
    random = random_numbers(key_of_parameter(key, 7), torch.arange(len(values), dtype=torch.int32))
    assert torch.equal(buffer, rounded(values, random, FLOAT8, unit))
    held = from_float8(buffer, unit, torch.float64).abs()
    assert held.max() == min(LARGEST * unit, 2.0**128)


@IMPLEMENTATIONS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_implementation_agrees_to_the_bit(name, dtype, implement, kernel_calls):
    def train(**options):
        # At p = 2, and with powers of two, all compute the same float32 values, in whichever order.
        options = {"lr": 2.0**-7, "momentum": 0.5, "p_max": 2.0, "grad_rms": 2.5, **options}
        params, optimizer = make([(3, 5, 7, 4), (2100,), (1,), (0,), (33, 31)], dtype, **options)
        params[0].data = params[0].data.to(memory_format=torch.channels_last)
        params[4].data = params[4].data.t().contiguous().t()
        for step in range(3):
            for param in params:
                values = torch.randn(param.shape, generator=torch.Generator().manual_seed(step))
                param.grad = torch.empty_like(param).copy_(values.pow(5))  # of many sizes
            optimizer.step()
        return params, optimizer

    expected = train(**implement("single"))
    assert not kernel_calls
    found = train(**implement(name))
    assert bool(kernel_calls) == (name == "triton" or (name == "fused" and dtype != torch.float16))
    assert equal(*expected, *found)
    assert not equal(*expected, *train(rounding_seed=4, **implement(name)))


@EACH_SIZE
@pytest.mark.parametrize("momentum", [0.6, 0.9])
def test_after_a_thousand_updates_with_a_constant_gradient_the_mean_is_exact_and_no_element_is_lost(
    grad_rms, momentum
):
    exponents = torch.arange(-12, 13).double()
    size = 0.01
    params, optimizer = make([(len(exponents), 3000)], momentum=momentum, grad_rms=grad_rms, lr=0.0)
    if grad_rms == "auto":
        params[0].grad = torch.full_like(params[0], size / (1 - momentum))  # which decides the size that is measured
        optimizer.step()
    params[0].grad = (size * 2.0**exponents).float()[:, None].expand(-1, 3000).contiguous()
    means = []
    for step in range(1000):
        optimizer.step()
        if step >= 200:
            means.append(momentum_of(optimizer, params[0]).mean(1))
    torch.testing.assert_close(torch.stack(means).mean(0), size * 2.0**exponents, rtol=1e-3, atol=0)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_first_update_with_auto_finds_the_unit_and_keeps_nothing(scale):
    params, optimizer = make(lr=0.1)
    before = [param.detach().clone() for param in params]
    gradients = [scale * torch.randn(300, 7), 1e-4 * scale * torch.randn(41)]
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = gradient
    optimizer.step()
    assert all(map(torch.equal, params, before))
    assert not any((optimizer.state[param]["momentum_buffer"] & 0x7F).any() for param in params)  # all are 0 or -0
    optimizer.step()
    unit = optimizer.param_groups[0]["momentum_unit"]
    size = 0.4 * torch.cat([gradient.flatten() for gradient in gradients]).square().mean().sqrt().item()
    assert size / 2 < unit <= size
    for param, gradient in zip(params, gradients, strict=True):
        torch.testing.assert_close(
            momentum_of(optimizer, param), 0.4 * gradient.double(), rtol=0.25, atol=unit * 2.0**-16
        )
    steps(params, optimizer, range(30), scale)
    assert optimizer.param_groups[0]["momentum_unit"] == unit


@pytest.mark.parametrize("bad", [0.0, torch.inf, torch.nan])
def test_a_first_gradient_without_a_size_leaves_the_unit_to_the_next(bad):
    params, optimizer = make()
    for param in params:
        param.grad = torch.full_like(param, 0.5) * bool(bad)
    params[0].grad[0, 0] = bad
    optimizer.step()
    assert optimizer.param_groups[0]["momentum_unit"] == 0
    assert params[1].isfinite().all()
    assert not momentum_of(optimizer, params[1]).any()
    params[0].grad = None
    steps(params[1:], optimizer, range(30))
    assert 1e-5 < optimizer.param_groups[0]["momentum_unit"] < 1e-3


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@IMPLEMENTATIONS
def test_a_gradient_that_is_no_number_does_what_it_does_with_other_dtypes(bad, name, implement):
    found = []
    for momentum_dtype in ("float8", "bfloat16"):
        params, optimizer = make(grad_rms=1e-3, momentum_dtype=momentum_dtype, **implement(name))
        steps(params, optimizer, range(2))
        params[0].grad[1, 2] = bad
        optimizer.step()
        steps(params, optimizer, range(2, 4))
        buffer = optimizer.state[params[0]]["momentum_buffer"]
        buffer = buffer.double() if momentum_dtype == "bfloat16" else momentum_of(optimizer, params[0])
        found.append((params[0].isnan(), buffer.isnan(), buffer.isinf()))
    assert all(map(torch.equal, *found))
    assert (found[0][1] | found[0][2]).sum() == 1


@pytest.mark.parametrize("given", ["float8", torch.float8_e5m2])
def test_it_is_refused_without_the_size_of_the_gradient_and_without_random_rounding(given):
    for lacking in ({"grad_rms": "auto"}, {"rounding": "stochastic"}):
        with pytest.raises(
            ValueError, match=r"^Invalid momentum_dtype: float8\. .*set rounding to stochastic and grad_rms to auto"
        ) as error:
            LPSGDM([torch.ones(3)], momentum_dtype=given, **lacking)
        assert "\n" not in str(error.value)
    params, optimizer = make(momentum_dtype=given)
    with pytest.raises(ValueError, match=r"Invalid momentum_dtype in param group 1: float8"):
        optimizer.add_param_group({"params": [torch.ones(3)], "grad_rms": None})
    optimizer.param_groups[0]["grad_rms"] = None
    with pytest.raises(ValueError, match="Invalid momentum_dtype: float8"):
        steps(params, optimizer, range(1))


def test_a_momentum_without_random_numbers_is_refused():
    tensors = [[torch.zeros(3)], [torch.ones(3)], [torch.zeros(3, dtype=FLOAT8)]]
    with pytest.raises(ValueError, match="A momentum in uint8"):
        functional.lpsgdm(*tensors, lr=0.1, p=6.0, eps=0.0, weight_decay=0.0, momentum=0.9)


@EACH_SIZE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("at", [1, 5, 25])
def test_a_resumed_run_is_the_uninterrupted_one_with_a_byte_per_parameter(grad_rms, dtype, at):
    options = {"dtype": dtype, "grad_rms": grad_rms}
    params, optimizer = make(**options)
    steps(params, optimizer, range(at))
    state = optimizer.state_dict()
    assert sum(entry["momentum_buffer"].nbytes for entry in state["state"].values()) == 300 * 7 + 41
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    twins, other = make(**options)
    for param, twin in zip(params, twins, strict=True):
        twin.data.copy_(param)
    other.load_state_dict(torch.load(file, weights_only=True))
    steps(params, optimizer, range(at, 30))
    steps(twins, other, range(at, 30))
    assert equal(params, optimizer, twins, other)
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert equal(params, optimizer, copied.param_groups[0]["params"], copied)


def test_a_first_state_is_in_every_kind_of_checkpoint():
    (group,) = make()[1].param_groups
    assert (group["momentum_unit"], group["rounded_steps"]) == (0.0, 0)


@EACH_SIZE
@pytest.mark.parametrize("other_dtype", ["bfloat16", "float32", None])
def test_a_momentum_of_another_dtype_is_loaded_into_it_and_the_reverse(other_dtype, grad_rms):
    for saved, wanted in ((other_dtype, "float8"), ("float8", other_dtype)):
        params, optimizer = make(momentum_dtype=saved, grad_rms=grad_rms)
        steps(params, optimizer, range(25))
        twins, other = make(momentum_dtype=wanted, grad_rms=grad_rms)
        with pytest.warns(UserWarning, match=f"momentum_dtype is {saved}, not {wanted} as requested"):
            other.load_state_dict(optimizer.state_dict())
        other.param_groups[0]["momentum_dtype"] = wanted  # what the warning says to do
        before = (
            optimizer.state[params[0]]["momentum_buffer"].double()
            if wanted == "float8"
            else momentum_of(optimizer, params[0])
        )
        for param in twins:
            param.grad = torch.zeros_like(param)
        other.step()
        after = (
            momentum_of(other, twins[0]) if wanted == "float8" else other.state[twins[0]]["momentum_buffer"].double()
        )
        unit = other.param_groups[0]["momentum_unit"]
        torch.testing.assert_close(
            after, 0.6 * before, rtol=0.5 if wanted == "float8" else 2**-7, atol=unit * 2.0**-15
        )


def test_a_state_whose_option_was_rewritten_is_converted_by_the_next_step():
    params, optimizer = make(momentum_dtype="float32", grad_rms=1e-3)
    steps(params, optimizer, range(3))
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][0]["momentum_dtype"] = "float8"
    twins, other = make(grad_rms=1e-3)
    # As torch.distributed.checkpoint hands over a state of float8 to an optimizer of another dtype: without the unit.
    with pytest.raises(ValueError, match=r"^The state holds no momentum_unit and so is not one of LPSGDM: load a"):
        other.load_state_dict(state)
    state["param_groups"][0]["momentum_unit"] = 0.0
    other.load_state_dict(state)
    for param in twins:
        param.grad = torch.zeros_like(param)
    other.step()
    expected = 0.6 * optimizer.state[params[0]]["momentum_buffer"].double()
    torch.testing.assert_close(momentum_of(other, twins[0]), expected, rtol=0.5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layerwise_is_the_ordinary_step_to_the_bit(dtype):
    def train(in_backward):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 30), torch.nn.Tanh(), torch.nn.Linear(30, 3)).to(dtype)
        optimizer = LPSGDM(model.parameters(), **make()[1].defaults)
        if in_backward:
            step_in_backward(optimizer)
        for step in range(25):
            model(torch.randn(4, 8, generator=torch.Generator().manual_seed(step)).to(dtype)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return list(model.parameters()), optimizer

    assert equal(*train(True), *train(False))


def test_a_group_of_which_this_process_holds_nothing_has_the_unit_of_the_others():
    params, optimizer = make(shapes=((300, 7),))
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(50))]})
    steps(params, optimizer, range(2))
    units = [group["momentum_unit"] for group in optimizer.param_groups]
    assert units[0] == units[1] > 0


def test_groups_that_join_later_have_units_of_their_own():
    params, optimizer = make(grad_rms=1e-3)
    late = torch.nn.Parameter(torch.ones(50))
    optimizer.add_param_group({"params": [late], "grad_rms": 10.0})
    late.grad = torch.full((50,), 10.0)
    steps(params, optimizer, range(3))
    assert [group["momentum_unit"] for group in optimizer.param_groups] == [2.0**-10, 8.0]
