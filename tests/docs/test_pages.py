"""The README stays short, the pages build strictly, and their tables are those of the code."""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
from paths import ROOT

needs_mkdocs = pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed")


def build(folder, site):
    """Run the command of `make docs` in a folder."""
    (command,) = re.findall(r"^\t@?(.* -m mkdocs build .*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    command = command.replace("$(BIN)/python", shlex.quote(sys.executable))
    return subprocess.run(
        f"{command} --site-dir {shlex.quote(str(site))}",
        shell=True,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )


def test_the_readme_is_one_screen_of_each_thing():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 130
    assert len(text.split()) <= 1300


@needs_mkdocs
def test_the_pages_build_strictly_and_load_nothing_from_the_network(tmp_path):
    run = build(ROOT, tmp_path)
    assert run.returncode == 0, run.stdout
    for page in tmp_path.glob("*.html"):
        text = page.read_text()
        for tag in ('<script src="http', '<link rel="stylesheet" href="http', '<img src="http', "fonts.g"):
            assert tag not in text, page.name


@needs_mkdocs
def test_a_broken_link_anchor_or_reference_fails_the_build(tmp_path):
    for entry in ROOT.iterdir():
        if entry.name in ("hf_lpsgd", "examples", "model_cards", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
            (tmp_path / entry.name).symlink_to(entry)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    with (tmp_path / "docs" / "resuming.md").open("a") as page:
        page.write(
            "\n[1](no_such_page.md) [2](options.md#no-such-anchor) [3](../examples/no_such_file.py)\n"
            "[4][hf_lpsgd.no_such_name]\n"
        )
    run = build(tmp_path, tmp_path / "site")
    assert run.returncode != 0
    for broken in ("no_such_page.md", "no-such-anchor", "no_such_file.py", "hf_lpsgd.no_such_name"):
        assert any("WARNING" in line and broken in line for line in run.stdout.splitlines()), run.stdout


def test_the_tables_of_the_pages_are_those_of_the_code_and_of_the_reports():
    spec = importlib.util.spec_from_file_location("docs_tables", ROOT / "docs" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    for path in tables.PAGES:
        page = path.read_text()
        assert tables.renewed(page) == page, (
            f"{path.name} is not what its tables' sources say: run `python docs/tables.py`"
        )
    for name in tables.TABLES:
        assert f"<!-- table: {name} -->" in tables.PAGES[0].read_text(), f"docs/options.md lacks the table {name!r}"
    for page, folder in zip(tables.PAGES[1:], ("shakespeare", "peak_memory_cpu"), strict=True):
        assert folder in re.findall("<!-- table: (.*?): ", page.read_text())
