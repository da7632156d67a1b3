"""The import hook: it registers when a module is imported, and is no hindrance to others that import it."""

import importlib.machinery
import sys

import pytest
from launch import python, write

from hf_lpsgd import import_hook

TRAINING_ARGS = """
try:
    raise RuntimeError("operator torchvision::nms\\ndoes not exist")
except RuntimeError as error:
    raise ModuleNotFoundError("Could not import module 'TrainingArguments'") from error
"""
IMPORT = "import transformers.training_args"


@pytest.mark.parametrize("first", ["import hf_lpsgd", ""], ids=["imported", "under the runner"])
def test_a_failing_import_is_said_once_with_the_error_that_it_began_with(tmp_path, first):
    write(tmp_path / "transformers" / "__init__.py", "")
    write(tmp_path / "transformers" / "training_args.py", TRAINING_ARGS)
    tried = f"try:\n    {IMPORT}\nexcept ImportError as error:\n    print(error)\n"
    write(tmp_path / "script.py", f"{first}\n{tried}{tried}import torch")
    done = python(tmp_path, *([] if first else ["-m", "hf_lpsgd"]), "script.py")
    assert (done.returncode, done.stdout) == (0, "Could not import module 'TrainingArguments'\n" * 2)
    (line,) = [line for line in done.stderr.splitlines() if "hf_lpsgd did not" in line]
    assert line.endswith(
        "hf_lpsgd did not register its optimizers: transformers cannot be imported: "
        "RuntimeError: operator torchvision::nms does not exist"
    )


def test_importing_the_package_imports_no_torch_until_a_name_is_used(tmp_path):
    code = "import sys, hf_lpsgd; print('torch' in sys.modules); hf_lpsgd.LPSGDM; print('torch' in sys.modules)"
    assert python(tmp_path, "-c", code).stdout == "False\nTrue\n"


OTHERS = """
import importlib.util, sys

class Asking:
    asked = []

    def find_spec(self, name, path=None, target=None):
        self.asked.append(name)
        if name not in self.asked[:-1] and name.startswith("transformers"):
            return importlib.util.find_spec(name)  # which asks every finder

class Old:
    def find_module(self, name, path=None):
        return None

if {first}:
    import hf_lpsgd
sys.meta_path[:0] = [Asking(), Old()]
if not {first}:
    import hf_lpsgd
from transformers.training_args import OptimizerNames
print(OptimizerNames("lpsgdm").value, "transformers.training_args" in Asking.asked)
"""


@pytest.mark.parametrize("first", [True, False])
def test_other_hooks_that_find_the_same_modules_are_asked(tmp_path, first):
    write(tmp_path / "script.py", OTHERS.format(first=first))
    done = python(tmp_path, "script.py")
    assert done.stdout == "lpsgdm True\n", done.stderr


def test_a_second_import_of_the_package_leaves_one_hook(tmp_path):
    anew = "import hf_lpsgd; [sys.modules.pop(name) for name in [*sys.modules] if name.startswith('hf_lpsgd')]"
    shown = "import hf_lpsgd; print([type(one).__module__ for one in sys.meta_path].count('hf_lpsgd.import_hook'))"
    assert python(tmp_path, "-c", f"import sys; {anew}; {shown}").stdout == "1\n"


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    import hf_lpsgd

    with pytest.raises(AttributeError, match="module 'hf_lpsgd' has no attribute 'LPSGDX'"):
        hf_lpsgd.LPSGDX  # noqa: B018
    assert hf_lpsgd.trainer is sys.modules["hf_lpsgd.trainer"]
    assert not hasattr(hf_lpsgd, "__path_of_nothing__")


def test_a_loader_of_several_modules_says_nothing_of_the_others(tmp_path, monkeypatch, recwarn):
    class Shared(importlib.machinery.SourcelessFileLoader):
        def create_module(self, spec):
            return None

        def exec_module(self, module):
            if module.__name__ == "nothing_here":
                raise ImportError("nothing here")

    loader = Shared("all", str(tmp_path))

    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name in ("timm", "timm.optim", "nothing_here"):
                return importlib.machinery.ModuleSpec(name, loader, is_package=name == "timm")
            return None

    asked = []
    monkeypatch.setattr(import_hook, "_register", asked.append)
    monkeypatch.setattr(sys, "meta_path", [import_hook.AfterImport(), Finder()])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    importlib.import_module("timm.optim")
    with pytest.raises(ImportError, match="nothing here"):
        importlib.import_module("nothing_here")
    assert asked == ["hf_lpsgd.integrations.timm"]
    assert not [one for one in recwarn if "hf_lpsgd" in str(one.message)]


def test_a_ring_of_causes_has_an_end():
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert import_hook.first_cause(one) in ("ValueError: one", "ValueError: other")
