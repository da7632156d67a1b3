"""A fused kernel that computes something wrong is found out before it is used, and told of once."""

import contextlib
import subprocess
import sys
import warnings

import pytest
import torch

from hf_lpsgd import LPSGD, LPSGDM
from hf_lpsgd.environment import describe_environment
from hf_lpsgd.optim.kernels import choice, cpu, cuda, self_check, torch_ops
from hf_lpsgd.optim.kernels.rounding import FLOAT8

CPU = torch.device("cpu")
F32, BF16, F16, F8 = torch.float32, torch.bfloat16, torch.float16, FLOAT8
IN_USE = [
    (F32, F32, F32),
    (F32, F32, None),
    (BF16, BF16, BF16),
    (BF16, BF16, None),
    (F16, F16, F16),
    (F32, F32, BF16),
    (BF16, BF16, F32),
    (F32, BF16, F32),
    (F32, F32, F8),
    (BF16, BF16, F8),
    (F16, F16, F8),
]


def torch_step(tensors, hyper):
    torch_ops.step(tensors, hyper, foreach=True)
    return True


def wrong_exponent(tensors, hyper):
    return torch_step(tensors, hyper._replace(rho=hyper.rho * 1.001))


def shortened(tensors, length):
    """The first `length(size)` elements of tensors of `size` elements."""

    def cut(column):
        return None if column is None else [tensor[: length(len(tensor))] for tensor in column]

    return tensors._replace(params=cut(tensors.params), grads=cut(tensors.grads), buffers=cut(tensors.buffers))


def skipped_tail(tensors, hyper):
    return torch_step(shortened(tensors, lambda size: max(size // 16 * 16, 1)), hyper)


def rounding_towards_zero(tensors, hyper):
    exact = tensors._replace(params=[param.float() for param in tensors.params])
    torch_step(exact, hyper)
    for param, twin in zip(tensors.params, exact.params, strict=True):
        if param.dtype == BF16:
            param.copy_((twin.view(torch.int32) & -65536).view(F32))
        else:
            param.copy_(twin)
    return True


def no_momentum(tensors, hyper):
    return torch_step(tensors._replace(buffers=None), hyper)


def no_decay(tensors, hyper):
    return torch_step(tensors, hyper._replace(weight_decay=0.0))


def no_bound(tensors, hyper):
    return torch_step(tensors, hyper._replace(bound=float("inf")))


def nearest_always(tensors, hyper):
    return torch_step(tensors, hyper._replace(rounding=None))


def other_random_numbers(tensors, hyper):
    return torch_step(tensors._replace(numbers=[number + 1 for number in tensors.numbers]), hyper)


def other_unit(tensors, hyper):
    return torch_step(tensors, hyper._replace(momentum_unit=2 * hyper.momentum_unit))


def raising(tensors, hyper):
    raise RuntimeError("no such instruction")


def not_made(tensors, hyper):
    return False


def not_a_number(tensors, hyper):
    torch_step(tensors, hyper)
    tensors.params[1][7] = float("nan")
    return True


def leaving_out(is_left_out):
    """A kernel that makes no step where `is_left_out(tensors, hyper)`."""

    def step(tensors, hyper):
        return is_left_out(tensors, hyper) or torch_step(tensors, hyper)

    return step


def only_the_first(most):
    """A kernel that updates the first `most` elements of a tensor alone."""

    def step(tensors, hyper):
        return torch_step(shortened(tensors, lambda size: most), hyper)

    return step


@pytest.mark.parametrize("dtypes", IN_USE, ids=str)
def test_torchs_foreach_operations_and_the_cpu_kernel_agree_with_torchs_single_ones(dtypes):
    assert self_check.why_wrong(torch_step, CPU, dtypes) is None
    if cpu.instructions() is not None and cpu.supports(CPU, *dtypes):
        assert self_check.why_wrong(cpu.step, CPU, dtypes) is None


@pytest.mark.parametrize(
    ("step", "dtypes", "said"),
    [
        (
            wrong_exponent,
            IN_USE[0],
            "in a step with float32 parameters, float32 gradients, float32 momentum, a parameter",
        ),
        (skipped_tail, IN_USE[0], "a parameter is"),
        (skipped_tail, IN_USE[3], "a parameter is"),
        (rounding_towards_zero, IN_USE[2], "a parameter is"),
        (no_momentum, IN_USE[0], "a parameter is"),
        (no_decay, IN_USE[1], "a parameter is"),
        (no_bound, IN_USE[0], "in a bounded step"),
        (nearest_always, IN_USE[2], "in a step with stochastic rounding"),
        (other_random_numbers, IN_USE[5], "in a step with stochastic rounding"),
        (other_random_numbers, IN_USE[8], "float32 parameters, float32 gradients, uint8 momentum, a momentum is"),
        (other_unit, IN_USE[9], "a parameter is"),
        (raising, IN_USE[0], "a step fails with RuntimeError: no such instruction"),
        (not_made, IN_USE[0], "a step fails with RuntimeError: it was not made"),
        (not_a_number, IN_USE[0], "a parameter is nan and not"),
    ],
)
def test_a_broken_kernel_is_found_out(step, dtypes, said):
    assert said in self_check.why_wrong(step, CPU, dtypes)


WITHOUT_ONE_BRANCH = {
    "without a sum of squares": leaving_out(lambda tensors, hyper: hyper.squares is None),
    "with a sum of squares": leaving_out(lambda tensors, hyper: hyper.squares is not None),
    "p = 2": leaving_out(lambda tensors, hyper: hyper.rho == 0 and hyper.grad_weight <= 0.5),
    "p = 2 and little momentum": leaving_out(lambda tensors, hyper: hyper.rho == 0 and hyper.grad_weight > 0.5),
    "little momentum": leaving_out(lambda tensors, hyper: hyper.rho > 0 and hyper.grad_weight > 0.5),
    "a learning rate in a tensor": leaving_out(lambda tensors, hyper: isinstance(hyper.lr, torch.Tensor)),
    "the second block": only_the_first(1024),
    "the tail": only_the_first(2048),
    "the second thread": only_the_first(32768),
    "aligned tensors": leaving_out(lambda tensors, hyper: all(t.data_ptr() % 16 == 0 for t in tensors.params)),
}


@pytest.mark.parametrize("dtypes", [IN_USE[0], IN_USE[3]], ids=str)
@pytest.mark.parametrize("branch", WITHOUT_ONE_BRANCH)
def test_a_kernel_that_leaves_out_one_branch_is_found_out(branch, dtypes):
    assert " and not " in self_check.why_wrong(WITHOUT_ONE_BRANCH[branch], CPU, dtypes)


@pytest.mark.parametrize("dtypes", [(F32, F32, F32), (F32, F32, None), (F16, F16, F16)], ids=str)
def test_the_cuda_kernel_as_interpreted_on_a_cpu_passes_and_every_branch_of_it_is_run(dtypes, load_kernel):
    load_kernel(interpret=True)
    branches = set()
    real = cuda.step

    def step(tensors, hyper):
        for param in tensors.params:
            size, is_aligned = param.numel(), param.data_ptr() % 16 == 0
            branches.add((size >= cuda.BLOCK and is_aligned, hyper.squares is None, hyper.rounding is None))
        return real(tensors, hyper)

    assert self_check.why_wrong(step, CPU, dtypes) is None
    assert {(True, True, True), (True, False, True), (True, False, False), (False, False, True)} <= branches


@pytest.fixture
def broken(monkeypatch):
    """The CPU kernel with a wrong exponent, and nothing known of it yet."""
    if cpu.instructions() is None:
        pytest.skip("hf_lpsgd was installed without its CPU kernel")
    monkeypatch.setattr(choice, "_found_wrong", {})
    monkeypatch.setattr(cpu, "step", wrong_exponent)


def step_of(cls, **options):
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.randn(100))
    param.grad = torch.randn(100)
    optimizer = cls([param], lr=0.1, **options)
    optimizer.step()
    return param.detach()


@pytest.mark.parametrize("cls", [LPSGD, LPSGDM])
def test_a_broken_kernel_is_not_used_and_told_of_once(cls, broken):
    with pytest.warns(
        UserWarning, match=r"hf_lpsgd updates by torch's own operations: the fused kernel .* python -m hf_lpsgd --env"
    ):
        used = step_of(cls)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = step_of(cls)
    assert torch.equal(used, step_of(cls, foreach=False))
    assert torch.equal(used, again)


def test_a_broken_kernel_that_is_demanded_is_an_error_and_nothing_is_changed(broken):
    for _ in range(2):
        with pytest.raises(ValueError, match=r"Invalid fused: True\. The fused kernel .* leave fused=None\."):
            step_of(LPSGDM, fused=True)


def test_the_diagnosis_tells_of_a_broken_kernel(broken):
    (line,) = [line for line in describe_environment().splitlines() if line.startswith("cpu:")]
    assert "fused, but it is wrong: in a step with float32 parameters" in line


def test_the_diagnosis_tries_no_dtype_that_the_kernel_does_not_take(broken, monkeypatch):
    monkeypatch.setattr(cpu, "supports", lambda device, *dtypes: F32 not in dtypes)
    (line,) = [line for line in describe_environment().splitlines() if line.startswith("cpu:")]
    assert "fused, but it is wrong: in a step with bfloat16 parameters" in line


def test_a_kernel_is_proved_once_for_each_kind_of_tensors(monkeypatch):
    if cpu.instructions() is None:
        pytest.skip("hf_lpsgd was installed without its CPU kernel")
    monkeypatch.setattr(choice, "_found_wrong", {})
    proved = []
    real = self_check.why_wrong
    monkeypatch.setattr(self_check, "why_wrong", lambda *args: proved.append(args[2]) or real(*args))
    for _ in range(2):
        step_of(LPSGDM)
        step_of(LPSGD)
        step_of(LPSGDM, momentum_dtype="bfloat16")
        step_of(LPSGDM, foreach=False)
    assert proved == [(F32, F32, F32), (F32, F32, None), (F32, F32, BF16)]


@contextlib.contextmanager
def default_device(name):
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(F32)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SURROUNDINGS = {
    "a default device": lambda: default_device("meta"),
    "a default device that is missing": lambda: default_device("xpu"),
    "a device of a block": lambda: torch.device("meta"),
    "float64 by default": lambda: default_dtype(torch.float64),
    "bfloat16 by default": lambda: default_dtype(BF16),
    "inference": torch.inference_mode,
    "deterministic": deterministic,
}


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_steps_and_the_proof_of_a_kernel_are_the_same_whatever_torch_makes_by_default(
    surroundings, dtype, monkeypatch
):
    def trained():
        params = [torch.nn.Parameter(torch.linspace(-1, 1, 300, dtype=dtype, device="cpu")) for _ in range(2)]
        for options in ({}, {"grad_rms": "auto"}, {"rounding": "stochastic", "momentum_dtype": "bfloat16"}):
            for optimizer in (LPSGDM(params, lr=0.1, **options), LPSGDM(params, lr=0.1, foreach=True, **options)):
                for _ in range(2):
                    for param in params:
                        param.grad = param.detach().clone()
                    optimizer.step()
        return [param.detach() for param in params]

    expected = trained()
    monkeypatch.setattr(choice, "_found_wrong", {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with SURROUNDINGS[surroundings]():
            found = trained()
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("options", [{}, {"grad_rms": "auto"}, {"rounding": "stochastic"}], ids=str)
def test_tensors_without_values_can_be_stepped_as_by_torchs_own_optimizers(options):
    with torch.device("meta"):
        param = torch.nn.Parameter(torch.ones(300, dtype=BF16))
        optimizer = LPSGDM([param], **options)
        for _ in range(3):
            param.grad = torch.ones_like(param)
            optimizer.step()
    assert optimizer.state[param]["momentum_buffer"].dtype == BF16


def test_the_cuda_kernel_measures_in_float32_whatever_the_default_dtype(load_kernel):
    load_kernel(interpret=True)
    with default_dtype(BF16):
        assert self_check.why_wrong(cuda.step, CPU, (F32, F32, None)) is None


def test_the_cuda_kernel_is_tried_in_float32_whatever_the_default_dtype(load_kernel, monkeypatch):
    load_kernel(interpret=False)
    tried = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(cuda, "step", lambda tensors, hyper: tried.append(tensors.dtypes))
    with default_dtype(torch.float64):
        assert cuda._find_reason(CPU) is None
    assert tried == [(F32, F32, None)]


def test_a_new_process_proves_its_kernel_without_changing_the_random_state():
    code = (
        "import torch; from hf_lpsgd import LPSGDM; p = torch.nn.Parameter(torch.ones(3)); p.grad = torch.ones(3); "
        "torch.manual_seed(5); LPSGDM([p]).step(); one = torch.rand(1); torch.manual_seed(5); "
        "assert torch.equal(one, torch.rand(1))"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=100)
