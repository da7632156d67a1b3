"""Rules that no linter checks: the size of files, and that the library does not know the examples."""

import ast
from pathlib import Path

from paths import EXAMPLES, ROOT

import hf_lpsgd

PACKAGE = Path(hf_lpsgd.__file__).parent
SOURCES = [
    path
    for folder in (PACKAGE, EXAMPLES, ROOT / "tests", ROOT / "docs", ROOT / "model_cards")
    for path in folder.rglob("*")
    if path.suffix in (".py", ".cpp")
]


def test_no_source_file_has_more_than_400_lines():
    assert len(SOURCES) > 100
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in SOURCES}
    assert {path: count for path, count in lines.items() if count > 400} == {}


def test_the_library_imports_no_module_of_the_examples():
    of_examples = {name for path in EXAMPLES.rglob("*.py") for name in (path.stem, path.parent.name)}
    imported = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(str(node.module).split(".")[0])
    assert "torch" in imported
    assert imported & of_examples == set()
