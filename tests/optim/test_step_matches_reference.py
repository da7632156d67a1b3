"""Each step, from the same state, against the float64 reference."""

import numpy as np
import pytest
import torch
from reference import as_float64, lpsgd_step, lpsgdm_step, paper_p

from hf_lpsgd import LPSGD, LPSGDM
from hf_lpsgd.optim import functional
from hf_lpsgd.optim.kernels import torch_ops
from hf_lpsgd.optim.kernels.hyperparameters import Hyperparameters
from hf_lpsgd.optim.kernels.tensors import SumOfSquares, Tensors

STEPS = 200
EVERY_IMPLEMENTATION = pytest.mark.parametrize("implementation", ["default", "single", "foreach", "fused", "triton"])


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Let tensors of a few hundred elements be walked through in several blocks."""
    monkeypatch.setattr(torch_ops, "_CPU_BLOCK", 500)


def make_tensors(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    return [
        randn(15, 70),  # more than a block
        randn(37),
        randn(()),
        randn(0, 3),
        randn(8, 8, 3, 3).to(memory_format=torch.channels_last),
        randn(17, 60).t(),  # a transposed view of several blocks
        randn(20, 80)[:, ::2],  # strided, without a flat view
    ]


def gradients_like(tensors, step):
    generator = torch.Generator().manual_seed(1 + step)
    # Ten orders of magnitude, and exact zeros.
    scale = 10.0 ** (step % 11 - 9)
    grads = [torch.randn(t.shape, generator=generator).to(t.dtype) * scale for t in tensors]
    for grad in grads:
        grad.masked_fill_(torch.rand(grad.shape, generator=generator) < 0.1, 0.0)
    return grads


@pytest.mark.covering("cls", "implementation")
@EVERY_IMPLEMENTATION
@pytest.mark.parametrize(("p_max", "weight_decay"), [(2.0, 0.1), (3.0, 0.0), (20.0, 0.0), (20.0, 0.1)])
@pytest.mark.parametrize("cls", [LPSGD, LPSGDM])
def test_every_step_equals_the_reference_while_p_falls_to_2(cls, p_max, weight_decay, implementation, implement):
    params = [t.requires_grad_() for t in make_tensors()]
    options = {"lr": 1e-2, "p_max": p_max, "weight_decay": weight_decay}
    optimizer = cls(params, **options, **implement(implementation))
    (group,) = optimizer.param_groups
    ps, compared = [], 0
    steps = STEPS // 5 if implementation == "triton" else STEPS  # its interpreter is slow
    for step in range(steps):
        group["p_max"] = paper_p(p_max, step + 1, steps)
        ps.append(group["p_max"])
        before = [as_float64(p) for p in params]
        means = [as_float64(optimizer.state[p].get("momentum_buffer", torch.zeros_like(p))) for p in params]
        for param, grad in zip(params, gradients_like(params, step), strict=True):
            param.grad = grad
        optimizer.step()
        for param, theta, mean in zip(params, before, means, strict=True):
            gradient = as_float64(param.grad)
            settings = {"lr": 1e-2, "p": ps[-1], "weight_decay": weight_decay}
            well_conditioned = np.ones(theta.shape, dtype=bool)
            if cls is LPSGDM:
                kept, added = 0.9 * mean, 0.1 * gradient
                expected, mean = lpsgdm_step(theta, mean, gradient, **settings)
                # Where the sum cancels, its relative error is unbounded in any float32 arithmetic.
                well_conditioned = np.abs(kept + added) >= 1e-2 * (np.abs(kept) + np.abs(added))
                actual_mean = as_float64(optimizer.state[param]["momentum_buffer"])
                np.testing.assert_allclose(actual_mean[well_conditioned], mean[well_conditioned], rtol=1e-5, atol=0)
            else:
                expected = lpsgd_step(theta, gradient, **settings)
            # So it is where the new parameter is a small difference of large terms.
            well_conditioned &= np.abs(expected) >= 0.1 * (np.abs(theta) + np.abs(expected - theta))
            np.testing.assert_allclose(
                as_float64(param)[well_conditioned], expected[well_conditioned], rtol=1e-5, atol=0
            )
            compared += well_conditioned.sum()
    assert ps[0] == pytest.approx(p_max)
    assert ps[-1] == pytest.approx(2.0)
    assert compared >= 0.9 * steps * sum(p.numel() for p in params)


@EVERY_IMPLEMENTATION
@pytest.mark.parametrize("p", [2.0, 2.5, 20.0, 1e6])
@pytest.mark.parametrize("eps", [1e-8, 0.0])
def test_the_update_itself_has_a_relative_error_below_1e_5(p, eps, implementation, implement):
    magnitudes = 10.0 ** np.linspace(-30, 6, 10001)
    gradient = torch.tensor(np.concatenate([magnitudes, -magnitudes]), dtype=torch.float32)
    param = torch.zeros_like(gradient)
    functional.lpsgd([param], [gradient], lr=1.0, p=p, eps=eps, weight_decay=0.0, **implement(implementation))
    expected = lpsgd_step(0.0, as_float64(gradient), lr=1.0, p=p, eps=eps)
    np.testing.assert_allclose(as_float64(param), expected, rtol=1e-5, atol=0)


@EVERY_IMPLEMENTATION
def test_float64_parameters_are_updated_in_float64(implementation, implement):
    param = torch.linspace(-1, 1, 1001, dtype=torch.float64).requires_grad_()
    theta = as_float64(param)
    optimizer = LPSGDM([param], lr=1e-2, p_max=7.0, **implement(implementation))
    param.grad = torch.linspace(-3, 5, 1001, dtype=torch.float64)
    optimizer.step()
    expected, _ = lpsgdm_step(theta, 0.0, as_float64(param.grad), lr=1e-2, p=7.0)
    np.testing.assert_allclose(as_float64(param), expected, rtol=1e-13, atol=1e-15)


@EVERY_IMPLEMENTATION
@pytest.mark.parametrize("cls", [LPSGD, LPSGDM])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("eps", [1e-8, 0.0])
def test_zero_and_tiny_low_precision_gradients_give_the_rounded_reference(dtype, cls, implementation, eps, implement):
    tiny = torch.finfo(dtype).smallest_normal
    gradient = torch.tensor([0.0, -0.0, tiny, -tiny, tiny / 4, 1e-6, -1e-3, 1.0], dtype=dtype)
    param = torch.full_like(gradient, 0.5).requires_grad_()
    optimizer = cls([param], lr=1e-2, p_max=50.0, eps=eps, **implement(implementation))
    param.grad = gradient
    optimizer.step()
    mean = 0.1 * as_float64(gradient) if cls is LPSGDM else as_float64(gradient)
    with np.errstate(invalid="ignore"):
        expected = lpsgd_step(0.5, mean, lr=1e-2, p=50.0, eps=eps)
    expected = np.where(mean == 0, 0.5, expected)
    assert param.dtype == dtype
    np.testing.assert_allclose(as_float64(param), expected, rtol=torch.finfo(dtype).eps, atol=0)


@EVERY_IMPLEMENTATION
def test_p_2_equals_sgd_on_an_exponential_moving_average(implementation, implement):
    torch.manual_seed(0)
    start = torch.randn(50, 20)
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    optimizer = LPSGDM([ours], lr=0.1, p_max=2.0, momentum=0.9, **implement(implementation))
    sgd = torch.optim.SGD([theirs], lr=0.1)
    mean = torch.zeros_like(start)
    for _ in range(20):
        gradient = torch.randn_like(start)
        mean.lerp_(gradient, 1 - 0.9)
        ours.grad, theirs.grad = gradient, mean.clone()
        optimizer.step()
        sgd.step()
    if implementation in ("single", "foreach"):
        assert torch.equal(ours, theirs)
    else:  # a fused kernel may round at other places
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_p_2_uses_no_power_of_torch(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a power was computed at p = 2")

    for name in ("log2_", "exp2_", "pow", "pow_", "abs"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    for foreach in (False, True):
        functional.lpsgd([torch.ones(3)], [torch.ones(3)], lr=1.0, p=2.0, eps=1e-8, weight_decay=0.0, foreach=foreach)
    with pytest.raises(AssertionError, match="a power was computed"):
        functional.lpsgd([torch.ones(3)], [torch.ones(3)], lr=1.0, p=2.1, eps=1e-8, weight_decay=0.0, foreach=False)


@EVERY_IMPLEMENTATION
def test_a_very_large_p_approaches_the_sign_step(implementation, implement):
    torch.manual_seed(0)
    gradient = torch.randn(1000)
    param = torch.zeros(1000)
    functional.lpsgd([param], [gradient], lr=1.0, p=1e6, eps=1e-8, weight_decay=0.0, **implement(implementation))
    torch.testing.assert_close(param, -gradient.sign(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("kinds", "dtype"), [(("cpu", "cuda"), torch.float64), (("cuda",), torch.float32)])
@pytest.mark.parametrize("foreach", [False, True])
def test_squares_are_summed_in_float64_but_on_devices_that_lack_it(kinds, dtype, foreach, monkeypatch):
    monkeypatch.setattr(torch_ops, "_HAVE_FLOAT64", kinds)
    used = []
    real = torch.linalg.vector_norm
    monkeypatch.setattr(torch.linalg, "vector_norm", lambda mean, dtype: used.append(dtype) or real(mean, dtype=dtype))
    squares = SumOfSquares()
    tensors = Tensors([torch.ones(3), torch.ones(2)], [torch.full((3,), 2.0), torch.full((2,), 3.0)], None, range(2))
    torch_ops.step(tensors, Hyperparameters(0.1, squares=squares), foreach=foreach)
    assert used == [dtype, dtype]
    assert squares.total() == pytest.approx(30.0, rel=1e-6)
    assert squares.count == 5


def test_what_was_measured_is_read_once_from_a_device(monkeypatch):
    squares = SumOfSquares()
    for number in range(1, 4):
        squares.add(torch.tensor(float(number)), 1)
    squares.add(0.5, 2)
    read = []
    real = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: read.append(tensor.shape) or real(tensor))
    assert (squares.total(), squares.count) == (6.5, 5)
    assert read == [(4,)]
