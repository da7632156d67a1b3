"""Warnings are shown to who runs a program, by Python's own filters and those that other packages set."""

import warnings

import pytest
import torch
from launch import python
from torch.optim.lr_scheduler import LambdaLR

from hf_lpsgd import LPSGDM, tie_p_schedule

LOOP = """
import copy
import torch
import hf_lpsgd
from hf_lpsgd import LPSGDM, tie_p_schedule

param = torch.nn.Parameter(torch.ones(3))
def make():
    optimizer = LPSGDM([param], lr=1e-3)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
def step(optimizer):
    param.grad = torch.ones(3)
    optimizer.step()

optimizer, lr_scheduler = make()
tie_p_schedule(optimizer, lr_scheduler, "cosine", num_training_steps=20)
for _ in range(10):
    step(optimizer)
for _ in range(10):
    lr_scheduler.step()
step(optimizer)
state = copy.deepcopy(optimizer.state_dict())
optimizer, lr_scheduler = make()
optimizer.load_state_dict(state)
step(optimizer)
"""


def test_a_plain_loop_prints_each_warning_once_although_accelerate_silences_those_of_torch(tmp_path):
    (tmp_path / "loop.py").write_text(LOOP)
    done = python(tmp_path, "loop.py")
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "UserWarning" in line]
    assert [line.split(":")[0].rpartition("/")[2] for line in told] == ["loop.py", "loop.py"], done.stderr
    assert "p is tied to a LambdaLR that has not moved" in told[0]
    assert "no LR scheduler is tied to this optimizer" in told[1]


def test_a_warning_names_the_line_that_called_torch():
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = LPSGDM([param])
    tie_p_schedule(optimizer, LambdaLR(optimizer, lambda step: 1.0), "constant")
    optimizer.param_groups[0]["p"] = 6.0
    param.grad = torch.ones(3)
    with pytest.warns(UserWarning, match="p goes from 6 in the param group to 20") as caught:
        optimizer.step()
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=UserWarning, module="torch.optim.lr_scheduler")
        other = LPSGDM([param])
        tie_p_schedule(other, LambdaLR(other, lambda step: 1.0), "constant")
        other.param_groups[0]["p"] = 6.0
        with pytest.raises(UserWarning, match="p goes from 6"):
            other.step()
