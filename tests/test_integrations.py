"""What other tools load by name, with tools made for the test: the real ones do not install beside the tests."""

from launch import python, write

TIMM_FACTORY = """
from dataclasses import dataclass


@dataclass
class OptimInfo:
    name: str
    opt_class: type
    description: str
    defaults: dict


class Registry:
    infos = {}

    def register(self, info):
        assert info.name not in self.infos
        self.infos[info.name] = info


default_registry = Registry()
"""
TIMM = """
from ._optim_factory import OptimInfo, default_registry


def list_optimizers():
    return list(default_registry.infos)
"""
MAKES = """
import timm.optim, torch
from timm.optim._optim_factory import default_registry
info = default_registry.infos["lpsgdm"]
optimizer = info.opt_class([torch.nn.Parameter(torch.ones(2))], **info.defaults)
print(sorted(default_registry.infos), optimizer.param_groups[0]["p_schedule"], optimizer.param_groups[0]["momentum"])
"""


def test_timm_has_the_optimizers_whose_p_follows_the_rate_under_the_runner_and_after_the_import(tmp_path):
    write(tmp_path / "timm" / "__init__.py", "")
    write(tmp_path / "timm" / "optim" / "__init__.py", TIMM)
    write(tmp_path / "timm" / "optim" / "_optim_factory.py", TIMM_FACTORY)
    write(tmp_path / "runner.py", MAKES)
    write(tmp_path / "first.py", f"import hf_lpsgd{MAKES}")
    write(tmp_path / "last.py", f"import timm.optim, hf_lpsgd{MAKES}")
    for command in (["-m", "hf_lpsgd", "runner.py"], ["first.py"], ["last.py"]):
        done = python(tmp_path, *command)
        assert (done.stdout, done.stderr) == ("['lpsgd', 'lpsgdm'] lr 0.6\n", ""), command


def test_an_older_timm_without_a_registry_is_left_as_it_is(tmp_path):
    write(tmp_path / "timm" / "__init__.py", "")
    write(tmp_path / "timm" / "optim" / "__init__.py", "")
    assert python(tmp_path, "-c", "import hf_lpsgd, timm.optim") == (0, "", "")


def test_axolotl_loads_the_plugin_that_makes_the_names_valid(tmp_path):
    write(tmp_path / "axolotl" / "__init__.py", "")
    write(tmp_path / "axolotl" / "integrations" / "__init__.py", "")
    write(tmp_path / "axolotl" / "integrations" / "base.py", "class BasePlugin: pass")
    loads = "import transformers.training_args as t; from hf_lpsgd.integrations.axolotl import LpsgdPlugin"
    done = python(
        tmp_path, "-c", f"{loads}; print(LpsgdPlugin.__mro__[1].__module__, t.OptimizerNames('lpsgdm').value)"
    )
    assert done.stdout == "axolotl.integrations.base lpsgdm\n", done.stderr
