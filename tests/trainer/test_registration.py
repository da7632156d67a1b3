import pickle
import subprocess
import sys

import pytest
from transformers import HfArgumentParser, TrainingArguments
from transformers.trainer import DEFAULT_CALLBACKS
from transformers.trainer_optimizer import _OPTIMIZER_HANDLERS
from transformers.training_args import OptimizerNames

import hf_lpsgd
from hf_lpsgd.optim import OPTIMIZERS
from hf_lpsgd.trainer import register
from hf_lpsgd.trainer.callback import LpScheduleCallback


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_importing_the_package_makes_both_names_valid(name, tmp_path):
    assert OptimizerNames(name).value == name
    assert OptimizerNames(name) in _OPTIMIZER_HANDLERS
    assert TrainingArguments(str(tmp_path), optim=name, use_cpu=True).optim is OptimizerNames(name)


def test_registering_again_changes_nothing():
    before = list(OptimizerNames), dict(_OPTIMIZER_HANDLERS), list(DEFAULT_CALLBACKS)
    register()
    assert (list(OptimizerNames), dict(_OPTIMIZER_HANDLERS), list(DEFAULT_CALLBACKS)) == before
    assert DEFAULT_CALLBACKS.count(LpScheduleCallback) == 1


def test_the_argument_parser_knows_both_names_also_in_its_usage(tmp_path):
    parser = HfArgumentParser(TrainingArguments)
    (args,) = parser.parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--optim", "lpsgdm", "--optim_args", "p_max=6", "--use_cpu"]
    )
    assert args.optim is OptimizerNames.LPSGDM
    assert ",lpsgd,lpsgdm,lpsgd_layerwise,lpsgdm_layerwise}" in parser.format_usage().replace(" ", "").replace(
        "\n", ""
    )


def test_an_unknown_optimizer_is_refused_with_the_valid_names(tmp_path, capsys):
    with pytest.raises(
        ValueError,
        match=r"lpsgdmm is not a valid OptimizerNames, .*'lpsgd', 'lpsgdm', 'lpsgd_layerwise', 'lpsgdm_layerwise'\]",
    ):
        TrainingArguments(str(tmp_path), optim="lpsgdmm")
    with pytest.raises(SystemExit):
        HfArgumentParser(TrainingArguments).parse_args(["--optim", "lpsgdmm"])
    assert "invalid choice: 'lpsgdmm'" in capsys.readouterr().err


@pytest.mark.parametrize("lacking", ["missing", "no module", "no handlers"])
def test_a_transformers_that_cannot_be_extended_gets_one_clear_line(lacking, monkeypatch):
    if lacking == "missing":
        monkeypatch.delitem(sys.modules, "transformers.trainer_optimizer")
        monkeypatch.delitem(sys.modules, "transformers")
        monkeypatch.setattr(sys, "path", [])
    elif lacking == "no module":
        monkeypatch.setitem(sys.modules, "transformers.trainer_optimizer", None)
    else:
        monkeypatch.delattr(sys.modules["transformers.trainer_optimizer"], "_OPTIMIZER_HANDLERS")
    with pytest.raises(ImportError, match=r"hf_lpsgd needs transformers>=5\.2,<6") as caught:
        register()
    assert "\n" not in str(caught.value)
    assert (caught.value.name == "transformers") == (lacking == "missing")  # which `import hf_lpsgd` accepts


def in_a_new_process(code, **kwargs):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **kwargs)


def test_a_pickled_member_registers_where_it_is_read():
    pickled = pickle.dumps(OptimizerNames.LPSGDM)
    assert pickle.loads(pickled) is OptimizerNames.LPSGDM
    done = in_a_new_process(f"import pickle; print(repr(pickle.loads({pickled!r})))")
    assert done.stdout.strip() == repr(OptimizerNames.LPSGDM), done.stderr


KNOWN = (
    "from transformers import TrainingArguments\n"
    "from transformers.trainer import DEFAULT_CALLBACKS\n"
    "from transformers.trainer_optimizer import _OPTIMIZER_HANDLERS\n"
    "args = TrainingArguments('unused', optim='lpsgdm', use_cpu=True)\n"
    "print(args.optim in _OPTIMIZER_HANDLERS, [callback.__name__ for callback in DEFAULT_CALLBACKS])"
)


@pytest.mark.parametrize("module", ["trainer_optimizer", "training_args", "trainer", "optimization"])
def test_whichever_module_of_transformers_comes_first_all_is_registered_and_nothing_said(module):
    done = in_a_new_process(f"import hf_lpsgd, transformers.{module}\n{KNOWN}")
    assert done.stdout.strip() == "True ['DefaultFlowCallback', 'LpScheduleCallback']", done.stderr
    assert "hf_lpsgd" not in done.stderr


@pytest.mark.parametrize("module", ["trainer_pt_utils", "trainer_utils", "debug_utils"])
def test_an_import_in_the_midst_of_those_of_transformers_registers_at_their_end_and_says_nothing(module):
    done = in_a_new_process(
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == 'transformers.{module}':\n"
        "            sys.meta_path.remove(self)\n"
        "            import hf_lpsgd\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"import transformers.training_args\n{KNOWN}"
    )
    assert done.stdout.strip() == "True ['DefaultFlowCallback', 'LpScheduleCallback']", done.stderr
    assert "hf_lpsgd" not in done.stderr


def test_the_trainer_is_not_imported_for_those_who_do_not_use_it_and_gets_its_callback_when_it_is():
    done = in_a_new_process(
        "import sys, hf_lpsgd\n"
        "assert 'transformers.trainer' not in sys.modules\n"
        "from transformers.trainer import DEFAULT_CALLBACKS, __loader__, __spec__\n"
        "assert __spec__.loader is __loader__\n"
        "print([callback.__name__ for callback in DEFAULT_CALLBACKS])"
    )
    assert done.stdout.strip() == "['DefaultFlowCallback', 'LpScheduleCallback']", done.stderr


def test_the_optimizers_and_schedules_need_torch_alone():
    done = in_a_new_process(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'transformers':\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "for name in ('accelerate', 'aenum', 'datasets', 'numpy'):\n"
        "    sys.modules[name] = None\n"
        "import torch\n"
        "from hf_lpsgd.optim import LPSGDM\n"
        "from hf_lpsgd import tie_p_schedule\n"
        "param = torch.ones(2, requires_grad=True)\n"
        "optimizer = LPSGDM([param])\n"
        "scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)\n"
        "tie_p_schedule(optimizer, scheduler, num_training_steps=3)\n"
        "param.grad = torch.ones(2)\n"
        "optimizer.step()\n"
        "print(param.tolist() != [1.0, 1.0])"
    )
    assert done.stdout.strip() == "True", done.stderr
    assert "did not register" not in done.stderr


@pytest.mark.parametrize("first", ["hf_lpsgd", "transformers.training_args"])
def test_an_unregistrable_transformers_warns_and_leaves_the_optimizers_usable(first):
    done = in_a_new_process(
        "import sys\n"
        "sys.modules['transformers.trainer_optimizer'] = None\n"
        f"import {first}\n"
        "import hf_lpsgd, transformers.training_args\n"
        "print(hf_lpsgd.LPSGDM.__name__)"
    )
    assert done.stdout.strip() == "LPSGDM"
    assert "hf_lpsgd did not register its optimizers: hf_lpsgd needs transformers>=5.2,<6" in done.stderr
    assert done.stderr.count("did not register") == done.stderr.count("trainer_optimizer") == 1


def test_the_public_names_are_there():
    assert set(hf_lpsgd.__all__) >= {"LPSGD", "LPSGDM", "tie_p_schedule", "__version__"}
    assert all(hasattr(hf_lpsgd, name) for name in hf_lpsgd.__all__)
