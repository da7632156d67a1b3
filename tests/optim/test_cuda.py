"""The fused implementation on a GPU."""

import copy

import numpy as np
import pytest
import torch
from matrix import EACH_OPTIMIZER
from peak_memory import peak_of
from reference import as_float64, lpsgdm_step

from hf_lpsgd import LPSGD, LPSGDM
from hf_lpsgd.optim import functional
from hf_lpsgd.optim.kernels import choice

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, device="cuda", generator=torch.Generator("cuda").manual_seed(seed)).to(dtype)


def test_fused_can_be_used_and_is_the_default(kernel_calls):
    assert choice.why_not_fused(torch.device("cuda:0")) is None
    kernel_calls.clear()
    params = [randn(1000).requires_grad_(), randn(3, 5).requires_grad_()]
    optimizer = LPSGDM(params)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert kernel_calls == [2]


def test_every_step_equals_the_reference_while_p_falls_to_2():
    params = [
        randn(*shape, seed=1) for shape in ((3000,), (37,), (), (0, 2), (1024, 65), (5, 7), (4001,), (3, 8, 9, 9))
    ]
    params[-2] = params[-2][1:]  # its address is no multiple of 16
    params[-1] = params[-1].to(memory_format=torch.channels_last)
    for param in params:
        param.requires_grad_()
    optimizer = LPSGDM(params, lr=1e-2, weight_decay=0.1, fused=True)
    (group,) = optimizer.param_groups
    for step in range(200):
        group["p_max"] = 20.0 - 18.0 * step / 199
        before = [as_float64(p) for p in params]
        means = [as_float64(optimizer.state[p].get("momentum_buffer", torch.zeros_like(p))) for p in params]
        for index, param in enumerate(params):
            param.grad = randn(*param.shape, seed=100 * step + index) * 10.0 ** (step % 11 - 9)
        optimizer.step()
        for param, theta, mean in zip(params, before, means, strict=True):
            gradient = as_float64(param.grad)
            expected, _ = lpsgdm_step(theta, mean, gradient, lr=1e-2, p=group["p_max"], weight_decay=0.1)
            kept, added = 0.9 * mean, 0.1 * gradient
            good = np.abs(kept + added) >= 1e-2 * (np.abs(kept) + np.abs(added))
            good &= np.abs(expected) >= 0.1 * (np.abs(theta) + np.abs(expected - theta))
            np.testing.assert_allclose(as_float64(param)[good], expected[good], rtol=1e-5, atol=0)


@EACH_OPTIMIZER
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_rounded_once_and_agrees_with_foreach(cls, dtype):
    results = []
    for options in ({"fused": True}, {"foreach": True}):
        params = [randn(5000, dtype=dtype).requires_grad_(), randn(31, dtype=dtype).requires_grad_()]
        optimizer = cls(params, lr=1e-2, **options)
        for param in params:
            param.grad = randn(*param.shape, seed=7, dtype=dtype)
        optimizer.step()
        results.append(params)
    for ours, theirs in zip(*results, strict=True):
        # Float32 results that differ in the last bits may fall on two sides of a rounding.
        assert (ours != theirs).float().mean() < 1e-3
        torch.testing.assert_close(ours, theirs, rtol=torch.finfo(dtype).eps, atol=0)


def test_momentum_in_float32_beside_parameters_in_bfloat16():
    param, grad, buffer = randn(4097, dtype=torch.bfloat16), randn(4097, seed=1, dtype=torch.bfloat16), randn(4097)
    expected, mean = lpsgdm_step(as_float64(param), as_float64(buffer), as_float64(grad), lr=1e-2, p=20.0)
    functional.lpsgdm([param], [grad], [buffer], lr=1e-2, momentum=0.9, p=20.0, eps=1e-8, weight_decay=0.0, fused=True)
    np.testing.assert_allclose(as_float64(param), expected, rtol=2**-7, atol=1e-3)
    np.testing.assert_allclose(as_float64(buffer), mean, rtol=1e-5, atol=1e-6)


def test_parameters_on_cpu_and_gpu_in_one_group():
    on_gpu, on_cpu = randn(100).requires_grad_(), randn(100).cpu().requires_grad_()
    optimizer = LPSGDM([on_gpu, on_cpu], lr=0.1)
    on_gpu.grad, on_cpu.grad = torch.ones_like(on_gpu), torch.ones_like(on_cpu)
    optimizer.step()
    torch.testing.assert_close(on_gpu.detach().cpu(), on_cpu.detach(), rtol=1e-6, atol=1e-6)


@EACH_OPTIMIZER
def test_nothing_waits_for_the_device_nor_compiles_when_p_lr_and_addresses_change(cls):
    from hf_lpsgd.optim.kernels import triton_kernel

    params = [randn(2000).requires_grad_() for _ in range(3)]
    optimizer = cls(params, lr=torch.tensor(0.1, device="cuda"), fused=True)

    def step(number):
        optimizer.param_groups[0]["p_max"] = 20.0 - number
        optimizer.param_groups[0]["lr"].fill_(0.1 / (1 + number))
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()

    step(0)
    compiled = len(next(iter(triton_kernel.lp_step.device_caches.values()))[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(1, 19):
            step(number)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(next(iter(triton_kernel.lp_step.device_caches.values()))[0]) == compiled


@EACH_OPTIMIZER
def test_a_captured_graph_repeats_the_step_and_reads_a_learning_rate_on_the_device(cls):
    params = [randn(3000).requires_grad_(), randn(7).requires_grad_()]
    twins = copy.deepcopy(params)
    lr = torch.tensor(0.1, device="cuda")
    optimizer, twin = cls(params, lr=lr, fused=True), cls(twins, lr=0.1, foreach=True)
    for param, other in zip(params, twins, strict=True):
        param.grad = randn(*param.shape, seed=3)
        other.grad = param.grad.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    twin.step()
    for rate in (0.1, 0.05):
        lr.fill_(rate)
        twin.param_groups[0]["lr"] = rate
        graph.replay()
        twin.step()
    for param, other in zip(params, twins, strict=True):
        torch.testing.assert_close(param, other, rtol=1e-5, atol=1e-6)


def test_a_graph_whose_gradients_are_made_in_the_capture_repeats_the_step():
    param = randn(3000).requires_grad_()
    twin = param.detach().clone().requires_grad_()
    optimizer, other = LPSGDM([param], lr=0.1), LPSGDM([twin], lr=0.1, foreach=True)

    def train(parameter, its_optimizer):
        its_optimizer.zero_grad()
        (parameter**2).sum().backward()
        its_optimizer.step()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        train(param, optimizer)
    torch.cuda.current_stream().wait_stream(stream)
    optimizer.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        train(param, optimizer)
    for _ in range(3):
        graph.replay()
    for _ in range(4):
        train(twin, other)
    torch.testing.assert_close(param, twin, rtol=1e-5, atol=1e-6)


def test_tables_are_read_on_other_streams_and_with_another_default_device():
    params = [randn(5000).requires_grad_()]
    params[0].grad = torch.ones_like(params[0])
    optimizer, before = LPSGD(params, lr=0.1, p_max=2, fused=True), params[0].detach().clone()
    torch.cuda.synchronize()
    with torch.device("cuda"):
        optimizer.step()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        optimizer.step()
    torch.cuda.synchronize()
    torch.testing.assert_close(params[0].detach(), before - 0.2)


def test_more_elements_than_32_bits_can_count():
    if torch.cuda.get_device_properties(0).total_memory < 40 * 2**30:
        pytest.skip("needs 40 GiB of GPU memory")
    count = 2**31 + 1025
    param, grad = (torch.zeros(count, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    for index in (0, 2**31 - 1, 2**31, count - 1):
        grad[index] = 1.0
    functional.lpsgd([param], [grad], lr=1.0, p=2.0, eps=1e-8, weight_decay=0.0, fused=True)
    assert torch.equal(param, -grad)


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"foreach": False}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_step_allocates_is_at_most_64_mb(options, dtype):
    params = [torch.zeros(2**27, dtype=dtype, device="cuda"), torch.zeros(2**20, dtype=dtype, device="cuda")]
    optimizer = LPSGDM(params, **options)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert peak_of(optimizer.step, params[0].device) <= 64 * 10**6
