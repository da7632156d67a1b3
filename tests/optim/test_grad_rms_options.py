"""saturation and lr_factor: what they mean, and that they are refused where they would do nothing."""

import pytest
import torch

from hf_lpsgd import LPSGD, LPSGDM
from hf_lpsgd.optim.functional import lpsgd


def make(cls=LPSGDM, **options):
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.randn(50))
    param.grad = torch.randn(50) * 0.01
    return cls([param], lr=0.1, weight_decay=0.5, **options), param


@pytest.mark.parametrize("name", ["saturation", "lr_factor"])
def test_an_option_of_the_size_without_a_size_is_told(name):
    with pytest.raises(
        ValueError, match=rf"Invalid {name}: 0\.5 has no effect without grad_rms\. Give grad_rms='auto'"
    ):
        make(**{name: 0.5})
    optimizer, _ = make()
    with pytest.raises(ValueError, match=rf"Invalid {name} in param group 1: 0\.5 has no effect"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], name: 0.5})
    assert len(optimizer.param_groups) == 1
    optimizer, _ = make(grad_rms="auto", **{name: 0.5})
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "grad_rms": None})


@pytest.mark.parametrize("cls", [LPSGD, LPSGDM])
@pytest.mark.parametrize("size", [3e-3, "auto"])
def test_the_update_is_multiplied_and_the_decay_is_not(cls, size):
    changes = []
    for factor in (1.0, 0.25, 1e-6):
        optimizer, param = make(cls, grad_rms=size, lr_factor=factor)
        decayed = (1 - 0.1 * 0.5) * param.detach()
        optimizer.step()
        changes.append(decayed - param.detach())
    torch.testing.assert_close(changes[1], 0.25 * changes[0], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(changes[2], torch.zeros(50), rtol=0, atol=5e-7)


def test_a_default_that_one_group_uses_is_not_refused():
    params = [{"params": [torch.nn.Parameter(torch.ones(1))], "grad_rms": "auto"}, torch.nn.Parameter(torch.ones(1))]
    groups = LPSGDM([params[0], {"params": [params[1]]}], lr_factor=0.25).param_groups
    assert [group["grad_rms"] for group in groups] == ["auto", None]


def test_a_state_from_before_there_was_lr_factor_goes_on_with_1():
    optimizer, _ = make(grad_rms="auto", lr_factor=1.0)
    optimizer.step()
    state = optimizer.state_dict()
    del state["param_groups"][0]["lr_factor"]
    other, _ = make(grad_rms="auto")
    with pytest.warns(UserWarning, match="lr_factor is 1, not None as asked for"):
        other.load_state_dict(state)
    assert other.param_groups[0]["lr_factor"] == 1.0


def test_the_function_refuses_a_factor_without_a_size():
    with pytest.raises(ValueError, match="has no effect without grad_rms"):
        lpsgd([torch.ones(1)], [torch.ones(1)], lr=0.1, p=2.0, eps=0.0, weight_decay=0.0, lr_factor=0.5)


def test_none_is_0_5_with_auto_and_one_with_a_number():
    for size, factor in (("auto", 0.5), (3e-3, 1.0)):
        (optimizer, param), (explicit, same) = make(grad_rms=size), make(grad_rms=size, lr_factor=factor)
        optimizer.step()
        explicit.step()
        assert torch.equal(param, same)
