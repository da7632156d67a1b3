"""Rules that no linter checks: the optimizer keeps its private names, and the library does not know the examples."""

import ast
from pathlib import Path

import torch
from paths import EXAMPLES

import hf_lpsgd
from hf_lpsgd.optim import OPTIMIZERS
from hf_lpsgd.optim.base import LpOptimizer

PACKAGE = Path(hf_lpsgd.__file__).parent


def nodes(*folders):
    """Each node of the syntax trees of all Python files in these folders, with its file."""
    for path in [path for folder in folders for path in folder.rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            yield path, node


def private_names():
    """The names with one underscore that LpOptimizer or one of its subclasses has, and torch's Optimizer has not."""
    names = set()
    for record in OPTIMIZERS.values():
        classes = [cls for cls in record.cls.__mro__ if issubclass(cls, LpOptimizer)]
        names |= {name for holder in (*classes, record.cls([torch.ones(1)])) for name in vars(holder)}
    names -= {*vars(torch.optim.Optimizer), *vars(torch.optim.SGD([torch.ones(1)]))}
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def test_nothing_but_the_optimizer_touches_its_underscore_names():
    names = private_names()
    assert {"_begin_anew", "_measurement"} <= names
    touched = {
        f"{path.name}, line {node.lineno}: {ast.unparse(node)}"
        for path, node in nodes(PACKAGE, EXAMPLES)
        if isinstance(node, ast.Attribute) and node.attr in names and ast.unparse(node.value) != "self"
    }
    assert touched == set()


def test_the_library_imports_no_module_of_the_examples():
    of_examples = {name for path in EXAMPLES.rglob("*.py") for name in (path.stem, path.parent.name)}
    imported = set()
    for _, node in nodes(PACKAGE):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            imported.add(str(node.module).split(".")[0])
    assert "torch" in imported
    assert imported & of_examples == set()
