"""A step with all learning rates and gradients zero, as checkpointing code makes one, is no update."""

import warnings

import pytest
import torch
from matrix import EACH_OPTIMIZER
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.utils._python_dispatch import TorchDispatchMode

from hf_lpsgd import LPSGD, LPSGDM, step_in_backward, tie_p_schedule
from hf_lpsgd.optim.measurement import MEASURED

STEPS = 24
OPTIONS = {"lr": 1e-2, "weight_decay": 0.1, "grad_rms": "auto", "rounding": "stochastic"}


def train(cls, in_backward, between):
    torch.manual_seed(0)
    model = nn.Linear(4, 4).to(torch.bfloat16)
    optimizer = cls(model.parameters(), **OPTIONS)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 3, 1.0))
    tie_p_schedule(optimizer, scheduler, num_training_steps=STEPS)
    if in_backward:
        step_in_backward(optimizer)
    for _ in range(STEPS):
        model(torch.randn(4, 4, dtype=torch.bfloat16)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        between(model, optimizer)
        scheduler.step()
    tensors = [*model.parameters(), *(tensor for state in optimizer.state.values() for tensor in state.values())]
    group = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    return [tensor.detach() for tensor in tensors], group


def save(model, optimizer):
    for _ in range(7):  # more than the steps after which an LR scheduler that does not move is warned of
        get_optimizer_state_dict(model, optimizer)


def step_of_zeros(model, optimizer):
    (group,) = optimizer.param_groups
    lr, group["lr"] = group["lr"], 0.0
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    optimizer.zero_grad()
    group["lr"] = lr


@pytest.mark.parametrize("between", [save, step_of_zeros])
@pytest.mark.parametrize("in_backward", [False, True])
@EACH_OPTIMIZER
def test_a_run_with_saves_or_steps_of_zeros_between_ends_as_the_one_without(cls, in_backward, between):
    tensors, group = train(cls, in_backward, lambda model, optimizer: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        others, other_group = train(cls, in_backward, between)
    assert all(torch.equal(one, other) for one, other in zip(tensors, others, strict=True))
    assert group == other_group
    assert group["rounded_steps"] == STEPS


def test_checkpointing_code_finds_the_state_of_an_optimizer_that_has_made_no_step():
    model = nn.Linear(2, 2)
    optimizer = LPSGDM(model.parameters(), momentum_dtype="bfloat16")
    state = get_optimizer_state_dict(model, optimizer)["state"]
    assert {entry["momentum_buffer"].dtype for entry in state.values()} == {torch.bfloat16}


@EACH_OPTIMIZER
def test_the_first_step_of_a_warm_up_with_a_rate_of_0_counts_and_is_measured(cls):
    param = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = cls([param], **{**OPTIONS, "lr": 0.0})
    for grads in (torch.zeros(4), torch.tensor([0, 0, 0, 1e-3])):
        param.grad = grads.bfloat16()
        optimizer.step()
    (group,) = optimizer.param_groups
    assert group["rounded_steps"] == 1
    assert group[MEASURED][3] == 4
    assert group[MEASURED][2] > 0


class Reads(TorchDispatchMode):
    """Counts the operations that hand a number of a tensor over to Python, for which a GPU has to be waited for."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default or func is torch.ops.aten.any.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("lr", "reads"), [(1e-3, False), (0.0, True)])
def test_gradients_are_looked_at_only_where_the_rate_is_0(lr, reads):
    param = nn.Parameter(torch.ones(4))
    optimizer = LPSGD([param], lr=lr)
    param.grad = torch.ones(4)
    optimizer.step()  # the first one compares the kernel with torch's operations
    with Reads() as mode:
        optimizer.step()
    assert (mode.count > 0) == reads


@EACH_OPTIMIZER
def test_a_rate_of_0_is_no_matter_on_the_meta_device(cls):
    param = nn.Parameter(torch.ones(3, device="meta"))
    param.grad = torch.ones_like(param)
    cls([param], lr=0.0).step()
    assert param.is_meta
