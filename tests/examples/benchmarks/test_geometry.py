"""The measurement of the premise against an exact Hessian and a reference in numpy."""

import math

import numpy as np
import pytest
import torch
from premise.geometry import ORDERS, gradient_and_curvature, noise_to_signal, promised_decrease, spread


def small_model():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    inputs, labels = torch.randn(16, 3, dtype=torch.float64), torch.randint(0, 2, (16,))
    return model, lambda: torch.nn.functional.cross_entropy(model(inputs), labels), inputs, labels


def exact_diagonal(model, inputs, labels):
    names = [name for name, _ in model.named_parameters()]
    sizes = [param.numel() for param in model.parameters()]
    flat = torch.cat([param.detach().flatten() for param in model.parameters()])

    def loss(vector):
        pieces = zip(names, vector.split(sizes), model.parameters(), strict=True)
        weights = {name: piece.view_as(param) for name, piece, param in pieces}
        return torch.nn.functional.cross_entropy(torch.func.functional_call(model, weights, (inputs,)), labels)

    return torch.autograd.functional.hessian(loss, flat).diagonal()


def test_the_estimate_of_the_curvature_converges_to_the_exact_diagonal_of_the_hessian():
    model, loss, inputs, labels = small_model()
    params = list(model.parameters())
    exact = exact_diagonal(model, inputs, labels)
    errors = []
    for probes in (10, 4000):
        _, curvature = gradient_and_curvature(loss, params, probes, torch.Generator().manual_seed(1))
        estimate = torch.cat([piece.flatten() for piece in curvature])
        errors.append(float((estimate - exact).norm() / exact.norm()))
    assert errors[1] < 0.06
    assert errors[1] < errors[0] / 5  # as the inverse square root of the number of probes, here 20


def test_the_gradient_is_that_of_backward_and_nothing_is_left_in_grad():
    model, loss, _, _ = small_model()
    params = list(model.parameters())
    gradient, _ = gradient_and_curvature(loss, params, 1)
    assert all(param.grad is None for param in params)
    for found, expected in zip(gradient, torch.autograd.grad(loss(), params), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert not found.requires_grad


def test_one_probe_is_exact_where_the_hessian_is_diagonal_and_unused_parameters_have_zeros():
    x = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    linear = torch.tensor([1.0, 1.0], requires_grad=True)
    unused = torch.ones(2, requires_grad=True)
    scale = torch.tensor([0.5, 2.0, 7.0])
    gradient, curvature = gradient_and_curvature(
        lambda: (0.5 * scale * x * x).sum() + linear.sum(), [x, linear, unused], 1
    )
    torch.testing.assert_close(curvature[0], scale)
    torch.testing.assert_close(gradient[0], (scale * x).detach())
    assert curvature[1].tolist() == curvature[2].tolist() == gradient[2].tolist() == [0.0, 0.0]


def test_attention_of_torch_has_a_second_derivative_here():
    attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 5, 8)

    def loss():
        return attention(x, x, x, need_weights=False)[0].square().mean()

    _, curvature = gradient_and_curvature(loss, list(attention.parameters()), 1)
    assert any(piece.abs().max() > 0 for piece in curvature)


def test_no_probe_is_told():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        gradient_and_curvature(lambda: torch.zeros(()), [], 0)


def reference(gradient, curvature, p):
    g, h = (
        np.abs(np.concatenate([x.numpy().ravel() for x in part]).astype(np.float64)) for part in (gradient, curvature)
    )
    q = p / (p - 1)
    of_h = h.max() if p == 2 else (h ** (p / (p - 2))).sum() ** ((p - 2) / p)
    return (g**q).sum() ** (2 / q) / of_h


def test_the_promised_decrease_is_that_of_the_formula():
    generator = torch.Generator().manual_seed(0)
    gradient = [torch.randn(5, 3, generator=generator), torch.randn(7, generator=generator) * 10]
    curvature = [torch.randn(5, 3, generator=generator), torch.rand(7, generator=generator)]
    orders = [2.0, 2.7, 3.0, 6.0, 20.0]
    expected = np.array([reference(gradient, curvature, p) for p in orders])
    shares = promised_decrease(gradient, curvature, orders)
    np.testing.assert_allclose([shares[p] for p in orders], expected / expected.max(), rtol=1e-9)


@pytest.mark.parametrize(("gradient", "curvature", "best"), [("one", "alike", 2.0), ("alike", "one", 1000.0)])
def test_the_best_order_is_two_for_an_even_curvature_and_a_sparse_gradient_and_sign_descent_for_the_reverse(
    gradient, curvature, best
):
    alike, one = torch.ones(1000), torch.full((1000,), 1e-9)
    one[0] = 1.0
    named = {"alike": [alike], "one": [one]}
    shares = promised_decrease(named[gradient], named[curvature])
    assert set(shares) == set(ORDERS)
    assert max(shares, key=lambda p: shares[p]) == best


def test_an_order_of_two_promises_as_much_as_the_others_where_all_elements_are_alike():
    shares = promised_decrease([torch.ones(100)], [torch.ones(100)])
    assert all(share == pytest.approx(1.0) for share in shares.values())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_promises_nothing(bad):
    assert promised_decrease([torch.tensor([1.0, bad])], [torch.ones(2)]) == {}
    assert promised_decrease([torch.ones(2)], [torch.tensor([1.0, bad])]) == {}


def test_zeros_promise_nothing():
    assert promised_decrease([torch.zeros(3)], [torch.ones(3)]) == {}
    assert promised_decrease([torch.ones(3)], [torch.zeros(3)]) == {}


def test_the_spread_is_one_where_all_are_alike_and_grows_with_outliers():
    assert spread([torch.full((10,), -3.0)]) == pytest.approx(1.0)
    assert math.isnan(spread([torch.zeros(2)]))
    assert math.isnan(spread([torch.tensor([1.0, math.nan])]))
    assert spread([torch.tensor([1.0] + [0.0] * 99)]) == pytest.approx(10.0)


def test_the_noise_is_the_variance_of_a_batch_over_the_squared_true_gradient():
    gradients = [[torch.tensor([1.0, 0.0])], [torch.tensor([3.0, 0.0])]]
    assert noise_to_signal(gradients) == pytest.approx(2.0 / (4.0 - 2.0 / 2))  # the noise of the mean is taken off
    assert noise_to_signal([[torch.tensor([1.0])], [torch.tensor([-1.0])]]) == math.inf
    with pytest.raises(ValueError, match="at least 2"):
        noise_to_signal(gradients[:1])
