"""What users copy from the examples must not break with the next release of a library."""

import ast

import pytest
from paths import EXAMPLES

ALLOWED = {
    "super()._init_weights",  # what transformers asks the authors of models to extend
    "os._exit",  # a documented function: ends a process without destructors, which would use a GPU that is lost
    "torch.cuda._sleep",  # no public call keeps a GPU busy for a time that is known
}
FILES = sorted(path for path in EXAMPLES.rglob("*.py") if "results" not in path.parts)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(EXAMPLES)))
def test_examples_use_no_private_attribute_of_other_classes(file):
    tree = ast.parse(file.read_text())
    # What this file itself assigns to, or defines, is its own.
    own = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    private = [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
        if ast.unparse(node) not in ALLOWED and not (ast.unparse(node.value) == "self" and node.attr in own)
    ]
    assert not private, f"there is a public way, or there must be a file that says why not: {private}"
