"""Rules that no linter checks: the size of files, and that the library does not know the examples."""

import ast
import subprocess

import pytest
from paths import EXAMPLES, ROOT

try:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
except (OSError, subprocess.CalledProcessError):
    listed = ""
SOURCES = [ROOT / name for name in listed.splitlines() if name.endswith((".py", ".cpp")) and (ROOT / name).exists()]


@pytest.mark.skipif(not SOURCES, reason="this is no git checkout")
def test_no_source_file_has_more_than_400_lines():
    lines = {path.relative_to(ROOT): path.read_text(encoding="utf-8").count("\n") for path in SOURCES}
    assert {path: count for path, count in lines.items() if count > 400} == {}


def test_the_library_imports_no_module_of_the_examples():
    of_examples = {path.stem for path in EXAMPLES.rglob("*.py")} | {"examples"}
    imported = set()
    for path in (ROOT / "hf_lpsgd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(str(node.module).split(".")[0])
    assert "torch" in imported
    assert imported & of_examples == set()
