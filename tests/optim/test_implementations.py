"""Which implementation is used, that all of them do the same, and what they leave alone."""

import io

import numpy as np
import pytest
import torch
from matrix import EACH_OPTIMIZER
from peak_memory import peak_of

from hf_lpsgd import LPSGD, LPSGDM
from hf_lpsgd.optim import functional
from hf_lpsgd.optim.kernels import choice, cpu, torch_ops

# Each but the first is compared with it.
IMPLEMENTATIONS = ["single", "foreach", "fused", "triton"]
DTYPES = (torch.float32, torch.float16, torch.float64, torch.bfloat16)


def make_params(seed=0):
    """Tensors of many kinds in one list: empty, of no dimension, odd sizes, strides, unaligned views, dtypes."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape, dtype=torch.float32):
        return torch.randn(*shape, generator=generator, dtype=torch.float32).to(dtype)

    params = [
        randn(1111),
        randn(0, 3),
        randn(()),
        randn(3000)[1:2900],  # its address is no multiple of 16
        randn(16, 8, 3, 3).to(memory_format=torch.channels_last),
        randn(17, 30).t(),
        randn(20, 40)[:, ::2],
        *(randn(1025, dtype=dtype) for dtype in DTYPES[1:]),
    ]
    return [param.requires_grad_() for param in params]


def set_gradients(params, step):
    """New gradients at new addresses, of changing strides, and none for some parameters."""
    generator = torch.Generator().manual_seed(100 + step)
    for index, param in enumerate(params):
        grad = (torch.randn(param.shape, generator=generator) * 10.0 ** -(step % 5)).to(param.dtype)
        if index % 2 == step % 2 and grad.dim() > 1:
            grad = torch.empty(*grad.shape[::-1], dtype=grad.dtype).permute(*range(grad.dim())[::-1]).copy_(grad)
        elif step % 3 == 0 and grad.dim() == 1:
            grad = grad.repeat_interleave(2)[::2]
        param.grad = None if (index + step) % 5 == 4 else grad


def run(params, optimizer, steps, first=0):
    for step in range(first, first + steps):
        optimizer.param_groups[0]["p_max"] = 20.0 - 18.0 * step / 19
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 + step % 4)
        set_gradients(params, step)
        optimizer.step()


def assert_close(params, expected, steps=1):
    """Up to a rounding of the dtype a step: the intermediate results of all are in float32 at least."""
    for param, value in zip(params, expected, strict=True):
        rounding = max(torch.finfo(param.dtype).eps, 1e-6)
        if param.dtype == torch.bfloat16:
            rounding *= 2  # triton's interpreter cuts bfloat16 off, where the hardware rounds
        torch.testing.assert_close(param.detach(), value.detach(), rtol=steps * rounding, atol=steps * rounding)


@pytest.mark.covering("cls", "implementation")
@EACH_OPTIMIZER
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "maximize": True}, {"momentum": 0.3}])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[1:])
def test_they_agree_while_p_lr_gradients_and_their_addresses_change(cls, options, implementation, implement):
    if cls is LPSGD and "momentum" in options:
        options = {}
    expected = make_params()
    run(expected, cls(expected, **options, **implement("single")), 20)
    params = make_params()
    run(params, cls(params, **options, **implement(implementation)), 20)
    assert_close(params, expected, steps=20)


@pytest.mark.covering
@pytest.mark.parametrize("written_by", IMPLEMENTATIONS)
@pytest.mark.parametrize("read_by", IMPLEMENTATIONS)
def test_a_checkpoint_of_one_continues_with_any_other(written_by, read_by, implement):
    expected = make_params()
    run(expected, LPSGDM(expected, **implement("single")), 12)

    params = make_params()
    optimizer = LPSGDM(params, **implement(written_by))
    run(params, optimizer, 6)
    file = io.BytesIO()
    torch.save({"params": [p.detach() for p in params], "optimizer": optimizer.state_dict()}, file)

    file.seek(0)
    checkpoint = torch.load(file, weights_only=True)
    params = make_params(seed=1)
    for param, value in zip(params, checkpoint["params"], strict=True):
        param.data.copy_(value)
    options = implement(read_by)
    optimizer = LPSGDM(params, **options)
    optimizer.load_state_dict(checkpoint["optimizer"])
    (group,) = optimizer.param_groups
    assert (group["foreach"], group["fused"]) == (options.get("foreach"), options.get("fused"))
    run(params, optimizer, 6, first=6)
    assert_close(params, expected, steps=12)


@EACH_OPTIMIZER
def test_the_default_on_the_cpu_is_the_fused_kernel_chosen_at_each_step(cls, implement, kernel_calls, monkeypatch):
    implement("fused")
    params = [torch.ones(5, requires_grad=True), torch.ones(3, requires_grad=True)]
    optimizer = cls(params)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert kernel_calls == [2]
    assert "fused" not in str(optimizer.state_dict()["state"])
    assert optimizer.state_dict()["param_groups"][0]["fused"] is None
    monkeypatch.setattr(cpu, "why_unavailable", lambda device: "it is gone")
    optimizer.step()
    assert kernel_calls == [2]


@EACH_OPTIMIZER
@pytest.mark.parametrize("options", [{}, {"p_max": 2}, {"grad_rms": "auto"}, {"rounding": "stochastic"}])
@pytest.mark.parametrize("foreach", [None, False])
def test_torch_compile_leaves_a_step_as_it_is_at_every_new_learning_rate(cls, options, foreach):
    torch.compiler.reset()  # what was compiled before a rate changed too often is not compiled again
    params = [torch.ones(70, dtype=torch.bfloat16 if "rounding" in options else torch.float32) for _ in range(2)]
    optimizers = [cls([param], lr=0.1, weight_decay=0.1, foreach=foreach, **options) for param in params]
    steps = [torch.compile(optimizers[0].step), optimizers[1].step]
    for number in range(6):
        for param, optimizer, step in zip(params, optimizers, steps, strict=True):
            optimizer.param_groups[0]["lr"] = 0.1 * 0.8**number
            param.grad = torch.linspace(-1, 1, 70, dtype=param.dtype)
            step()
        assert torch.equal(*params)
    assert not torch.equal(params[0], torch.ones_like(params[0]))


def test_torch_compile_leaves_the_functional_step_as_it_is_at_every_new_learning_rate():
    torch.compiler.reset()
    step, expected = torch.compile(functional.lpsgd), torch.ones(5)
    param, grad = torch.ones(5), torch.linspace(-1, 1, 5)
    for number in range(6):
        lr = 0.1 * 0.8**number
        step([param], [grad], lr=lr, p=2.0, eps=1e-8, weight_decay=0.1, foreach=False)
        expected.mul_(1 - lr * 0.1).sub_(grad, alpha=lr)
        torch.testing.assert_close(param, expected)


@EACH_OPTIMIZER
@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}, {"fused": False}])
def test_the_fused_kernel_is_not_used_where_another_is_asked_for(cls, options, kernel_calls):
    param = torch.ones(5, requires_grad=True)
    optimizer = cls([param], **options)
    param.grad = torch.ones(5)
    optimizer.step()
    assert kernel_calls == []
    assert not torch.equal(param, torch.ones(5))


def test_fused_parameters_left_on_the_meta_device_are_refused_at_the_step():
    param = torch.ones(3, device="meta", requires_grad=True)
    optimizer = LPSGDM([param], fused=True)
    param.grad = torch.ones_like(param)
    with pytest.raises(ValueError, match="none for the device meta, only for cpu and cuda"):
        optimizer.step()
    optimizer.param_groups[0]["fused"] = None
    optimizer.step()
    assert optimizer.state[param]["momentum_buffer"].is_meta


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("lr", [np.float32(0.1), np.array(0.1), torch.tensor(0.1, dtype=torch.float64)])
def test_numbers_of_other_kinds_that_a_scheduler_may_set_step_as_floats_do(lr, implementation, implement):
    param = torch.ones(3, requires_grad=True)
    optimizer = LPSGDM([param], p_max=2, momentum=0, **implement(implementation))
    optimizer.param_groups[0].update(lr=lr, momentum=0, weight_decay=1, p_max=np.float64(2.0))
    param.grad = torch.ones(3)
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.full((3,), 0.8))


def test_one_call_of_the_kernel_updates_all_tensors_of_a_kind(implement, kernel_calls):
    params = make_params()
    optimizer = LPSGDM(params, **implement("fused"))
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    # float32 but for the strided and the empty one, and bfloat16; float16 and float64 go another way.
    assert sorted(kernel_calls) == [1, 5]


@EACH_OPTIMIZER
def test_fused_where_the_kernel_was_not_compiled_is_refused_in_one_line_with_what_to_do(cls, monkeypatch, tmp_path):
    monkeypatch.setattr(cpu, "__file__", str(tmp_path / "cpu.py"))
    cpu._library.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"Invalid fused in param group 0: True.*without its compiled") as caught:
            cls([torch.ones(1, requires_grad=True)], fused=True)
        message = str(caught.value)
        assert "\n" not in message
        assert "apt install g++" in message
        assert "leave fused=None" in message
        param = torch.ones(1, requires_grad=True)
        optimizer = cls([param])
        param.grad = torch.ones(1)
        optimizer.step()
        assert param.item() < 1
    finally:
        cpu._library.cache_clear()


@EACH_OPTIMIZER
def test_fused_on_a_device_without_it_is_refused_when_built_and_before_a_step_changes_anything(cls, monkeypatch):
    params = [torch.ones(2, requires_grad=True) for _ in range(2)]
    optimizer = cls([{"params": params[:1]}, {"params": params[1:]}])
    for group in optimizer.param_groups:
        group["fused"] = True
    for param in params:
        param.grad = torch.ones(2)
    monkeypatch.setattr(choice, "FUSED_KERNELS", {})
    with pytest.raises(ValueError, match=r"Invalid fused: True.*there is none for the device cpu"):
        optimizer.step()
    assert all(torch.equal(param, torch.ones(2)) for param in params)
    with pytest.raises(ValueError, match="Invalid fused in param group 2: True"):
        optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)], "fused": True})
    assert len(optimizer.param_groups) == 2


@EACH_OPTIMIZER
def test_fused_and_foreach_together_are_refused(cls):
    with pytest.raises(ValueError, match=r"Invalid fused: True, with foreach=True\. Only one"):
        cls([torch.ones(1, requires_grad=True)], fused=True, foreach=True)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_backward_through_parameters_that_a_step_changed_fails_as_with_torchs_own(implementation, implement):
    param = torch.ones(3, requires_grad=True)
    optimizer = LPSGDM([param], **implement(implementation))
    loss = (param**2).sum()
    param.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    buffer = optimizer.state[param]["momentum_buffer"]
    version = buffer._version
    optimizer.step()
    assert buffer._version > version


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_tensors_that_are_not_plain_are_updated_by_torchs_operations(implementation, implement, kernel_calls):
    class Subclass(torch.Tensor):
        pass

    param = torch.ones(3).as_subclass(Subclass).requires_grad_()
    optimizer = LPSGD([param], lr=0.1, p_max=2, **implement(implementation))
    param.grad = torch.ones(3).as_subclass(Subclass)
    optimizer.step()
    assert kernel_calls == []
    torch.testing.assert_close(param.detach().as_subclass(torch.Tensor), torch.full((3,), 0.9))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shapes", [((8,), (3,)), ((2, 3), (3, 2))])
def test_a_gradient_or_buffer_of_another_shape_is_refused_by_torch(shapes, implementation, implement):
    param, grad, buffer = torch.ones(shapes[0]), torch.ones(shapes[1]), torch.ones(shapes[1])
    options = {"lr": 0.1, "p": 3.0, "eps": 1e-8, "weight_decay": 0.0, **implement(implementation)}
    with pytest.raises(RuntimeError, match=r"must match|must be the same|size mismatch"):
        functional.lpsgd([param], [grad], **options)
    with pytest.raises(RuntimeError, match=r"must match|must be the same|size mismatch"):
        functional.lpsgdm([param], [torch.ones_like(param)], [buffer], momentum=0.9, **options)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_without_memory_of_their_own_are_updated_by_torchs_operations(implementation, implement):
    options = {"lr": 0.1, "p": 2.0, "eps": 1e-8, "weight_decay": 0.5, **implement(implementation)}
    param = torch.ones(3)
    functional.lpsgd([param], [torch._efficientzerotensor(3)], **options)
    torch.testing.assert_close(param, torch.full((3,), 0.95))

    def step(param, grad):
        functional.lpsgd([param], [grad], **options)
        return param

    negative = torch._neg_view(torch.ones(3))
    torch.testing.assert_close(step(torch.ones(3), negative), torch.full((3,), 0.95 + 0.1))
    if implementation == "foreach":
        return  # which torch itself does not map
    mapped = torch.vmap(step)(torch.ones(2, 3), torch.tensor([1.0, 2.0]).outer(torch.ones(3)))
    torch.testing.assert_close(mapped, torch.tensor([0.85, 0.75]).outer(torch.ones(3)))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("p", "expected"), [(20.0, float("nan")), (2.0, float("-inf"))])
def test_gradients_that_are_not_finite_give_what_the_formula_does(p, expected, dtype, implementation, implement):
    gradient = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0], dtype=dtype)
    param = torch.zeros(4, dtype=dtype)
    functional.lpsgd([param], [gradient], lr=1.0, p=p, eps=1e-8, weight_decay=0.0, **implement(implementation))
    numbers = torch.tensor([float("nan"), expected, -expected, -1.0], dtype=dtype)
    torch.testing.assert_close(param, numbers, equal_nan=True)


@pytest.mark.covering
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("options", [{}, {"foreach": False}, {"foreach": True}])
def test_what_a_step_allocates_is_bounded_whatever_the_size_of_the_tensors(options, strided, dtype):
    peaks = []
    for rows in (2**10, 2**12, 2**13):
        params = [torch.ones(rows, 1024, dtype=dtype) for _ in range(2)]
        optimizer = LPSGDM(params, **options)
        for param in params:
            param.grad = torch.ones(1024, rows, dtype=dtype).t() if strided else torch.ones_like(param)
            optimizer.state[param]["momentum_buffer"] = torch.zeros_like(param)
        peaks.append(peak_of(optimizer.step, param.device))
    assert max(peaks) <= 8 * 2**20
    assert peaks[2] <= peaks[1] * 1.1 + 2**16
    if not options and not strided and choice.why_not_fused(param.device) is None:
        assert peaks[2] == 0
    else:
        assert peaks[2] >= 4 * torch_ops._CPU_BLOCK  # the measurement sees what is there
