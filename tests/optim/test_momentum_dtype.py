"""`momentum_dtype`: what the momentum is kept in, through steps, copies and checkpoints."""

import copy
import io
import pickle

import pytest
import torch

from hf_lpsgd import LPSGDM

PARAM_DTYPES = pytest.mark.parametrize("param_dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
MOMENTUM_DTYPES = pytest.mark.parametrize("name", [None, "bfloat16", "float32"])


def make(param_dtype, **options):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape).to(param_dtype)) for shape in ((40, 30), (7,))]
    return params, LPSGDM(params, lr=0.01, **options)


def steps(params, optimizer, count=3):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step()


def dtypes(params, optimizer):
    return {optimizer.state[param]["momentum_buffer"].dtype for param in params}


@PARAM_DTYPES
@MOMENTUM_DTYPES
@pytest.mark.parametrize("implementation", ["single", "foreach", "fused", "triton"])
def test_the_momentum_is_kept_in_it_and_computed_in_float32(param_dtype, name, implementation, implement):
    params, optimizer = make(param_dtype, momentum_dtype=name, **implement(implementation))
    steps(params, optimizer)
    dtype = param_dtype if name is None else getattr(torch, name)
    assert dtypes(params, optimizer) == {dtype}
    generator = torch.Generator().manual_seed(1)
    means = [torch.zeros(param.shape, dtype=torch.float64) for param in params]
    for _ in range(3):
        for mean in means:
            grad = torch.randn(mean.shape, generator=generator).to(param_dtype).double()
            mean.mul_(0.9).add_(0.1 * grad)
            mean.copy_(mean.to(dtype))
    tolerance = 2**-7 if dtype == torch.bfloat16 else 1e-6
    if implementation == "triton" and dtype == torch.bfloat16:
        tolerance = 2**-3  # triton's interpreter, other than its compiler, rounds bfloat16 towards zero
    for param, mean in zip(params, means, strict=True):
        buffer = optimizer.state[param]["momentum_buffer"]
        torch.testing.assert_close(buffer.double(), mean, rtol=tolerance, atol=max(tolerance * 1e-2, 3e-8))


@pytest.mark.parametrize("given", [torch.bfloat16, "bfloat16"])
def test_a_torch_dtype_is_taken_as_its_name(given):
    _, optimizer = make(torch.float32, momentum_dtype=given)
    assert optimizer.param_groups[0]["momentum_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("param_dtype", "name", "rounding"),
    [
        *((torch.float32, name, "nearest") for name in (None, "bfloat16", "float32")),
        *((torch.bfloat16, name, rounding) for name in (None, "float32") for rounding in ("nearest", "stochastic")),
        (torch.float32, "bfloat16", "stochastic"),
    ],
)
def test_a_loaded_state_is_what_was_saved_to_the_bit(param_dtype, name, rounding):
    options = {"momentum_dtype": name, "rounding": rounding, "p_max": 6.0}
    params, optimizer = make(param_dtype, **options)
    steps(params, optimizer)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twins, other = make(param_dtype, **options)
    with torch.no_grad():
        for param, twin in zip(params, twins, strict=True):
            twin.copy_(param)
    other.load_state_dict(torch.load(file, weights_only=True))
    for param, twin in zip(params, twins, strict=True):
        assert torch.equal(optimizer.state[param]["momentum_buffer"], other.state[twin]["momentum_buffer"])
    assert dtypes(twins, other) == dtypes(params, optimizer)
    steps(params, optimizer)
    steps(twins, other)
    assert all(torch.equal(param, twin) for param, twin in zip(params, twins, strict=True))


def test_a_copy_and_a_pickle_keep_it():
    params, optimizer = make(torch.bfloat16, momentum_dtype="float32")
    steps(params, optimizer)
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert dtypes(twin.param_groups[0]["params"], twin) == {torch.float32}


def test_a_state_of_another_momentum_dtype_is_loaded_as_it_is_and_told():
    params, optimizer = make(torch.bfloat16)
    steps(params, optimizer)
    twins, other = make(torch.bfloat16, momentum_dtype="float32")
    with pytest.warns(UserWarning, match="momentum_dtype is None, not float32 as requested"):
        other.load_state_dict(optimizer.state_dict())
    assert dtypes(twins, other) == {torch.bfloat16}
    other.param_groups[0]["momentum_dtype"] = "float32"  # what the warning says to do
    steps(twins, other)
    assert dtypes(twins, other) == {torch.float32}


def test_groups_can_differ_in_it():
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = LPSGDM([{"params": params[:1], "momentum_dtype": "bfloat16"}, {"params": params[1:]}])
    steps(params, optimizer)
    assert [optimizer.state[param]["momentum_buffer"].dtype for param in params] == [torch.bfloat16, torch.float32]


def test_hooks_of_load_state_dict_have_the_last_word():
    params, optimizer = make(torch.bfloat16, momentum_dtype="float32")
    steps(params, optimizer)
    twins, other = make(torch.bfloat16, momentum_dtype="float32")

    def before(_, state):
        changed = {
            key: {"momentum_buffer": torch.full_like(entry["momentum_buffer"], 1 / 3)}
            for key, entry in state["state"].items()
        }
        return {**state, "state": changed}

    handle = other.register_load_state_dict_pre_hook(before)
    other.load_state_dict(optimizer.state_dict())
    third = torch.tensor(1 / 3)
    assert all(torch.equal(other.state[twin]["momentum_buffer"], third.expand(twin.shape)) for twin in twins)
    handle.remove()

    def after(loaded):
        for twin in twins:
            assert loaded.state[twin]["momentum_buffer"].dtype == torch.float32
            loaded.state[twin]["momentum_buffer"].zero_()

    other.register_load_state_dict_post_hook(after)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert all(not other.state[twin]["momentum_buffer"].any() for twin in twins)


def test_what_is_written_into_a_group_later_takes_effect():
    params, optimizer = make(torch.bfloat16)
    steps(params, optimizer)
    optimizer.param_groups[0]["momentum_dtype"] = "float32"
    steps(params, optimizer)
    assert dtypes(params, optimizer) == {torch.float32}


def test_a_pickle_of_a_version_without_it_takes_new_groups():
    params, optimizer = make(torch.float32)
    steps(params, optimizer)
    state = optimizer.__getstate__()
    for values in (state["defaults"], *state["param_groups"]):
        for name in ("momentum_dtype", "rounding", "rounding_seed"):
            del values[name]
    old = LPSGDM.__new__(LPSGDM)
    old.__setstate__(state)
    late = torch.nn.Parameter(torch.ones(3))
    old.add_param_group({"params": [late]})
    late.grad = torch.ones(3)
    old.step()
    assert late.detach().max() < 1
