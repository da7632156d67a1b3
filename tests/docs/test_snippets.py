"""What the pages show is run, as a reader would run it, in a folder that looks like the repository's root."""

import os
import re
import sys
from pathlib import Path

import pytest
import yaml
from launch import python
from page_setup import write_script
from paths import IMAGE_CLASSIFICATION, ROOT
from snippets import commands_of, demo_command, first_line_not_printed, snippets_of, words_of

PAGES = [
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), IMAGE_CLASSIFICATION / "README.md")
    if path.is_file()
]
RUN = [page for page in PAGES if any(snippet.not_run is None for snippet in snippets_of((ROOT / page).read_text()))]
# Pages that must fail, and what is then said.
WRONG = {
    "raises.md": ("```python\nx = 1\n\nx / 0\n```\n", 'File "raises.md", line 4'),
    "shares_no_names.md": ("```python\nx\n```\n", "name 'x' is not defined"),
    "ends_badly.md": ("```console\n$ false\n```\n", "ends_badly.md, line 1: the exit status is 1"),
    "prints_other.md": ("```console\n$ echo loss 1\ngain 1\n```\n", "does not print in this place: gain 1"),
}
PAGE_RUNNER = ROOT / "tests" / "page_runner.py"
NOT_IN_A_CLONE = {"runs", "site", "build", "dist"}


@pytest.fixture
def run_page(forks, tmp_path):
    """Runs the snippets of a page in a folder like the repository's root; gives exit status and output."""

    def run(page, text=None):
        for entry in ROOT.iterdir():
            if not entry.name.startswith(".") and entry.name not in NOT_IN_A_CLONE:
                (tmp_path / entry.name).symlink_to(entry)
        if text is not None:
            (tmp_path / page).write_text(text)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = forks.run(PAGE_RUNNER, page, cwd=tmp_path, env={"PATH": path})
        return done.status, done.output

    return run


# The page of the showcase trains for longer than all others; what its commands do has tests of its own.
SHOWCASE = str(IMAGE_CLASSIFICATION.relative_to(ROOT) / "README.md")


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.exhaustive) if page == SHOWCASE else page for page in RUN]
)
def test_the_snippets_of_a_page_run_and_print_what_it_shows(page, run_page):
    status, output = run_page(page)
    assert status == 0, output


@pytest.mark.parametrize("page", WRONG)
def test_a_page_with_a_wrong_snippet_fails(page, run_page):
    text, said = WRONG[page]
    status, output = run_page(page, text)
    assert status == 1
    assert said in output


def test_the_readme_quotes_the_errors_of_a_forgotten_import(tmp_path):
    write_script(tmp_path / "train.py")
    by_flag = python(tmp_path, "train.py", "--output_dir", "out", "--optim", "lpsgdm")
    code = "from transformers import TrainingArguments; TrainingArguments('out', optim='lpsgdm')"
    runs = {"invalid choice": (by_flag, 2), "OptimizerNames": (python(tmp_path, "-c", code), 1)}
    for words, (run, status) in runs.items():
        (quoted,) = re.findall(rf"`([^`]*{words}[^`]*)`", (ROOT / "README.md").read_text())
        assert run.returncode == status
        assert quoted in run.stderr


def trained_folders():
    """Each command of the demo and of the pages that trains by a script of the showcase, with its output folder."""
    commands = [demo_command((ROOT / "Makefile").read_text())]
    for page in PAGES:
        consoles = [one for one in snippets_of((ROOT / page).read_text()) if one.language == "console"]
        commands += [command for one in consoles for command, _ in commands_of(one.text)]
    for words in map(words_of, commands):
        script = next((index for index, word in enumerate(words) if "/run_image_classification" in word), None)
        if script is None or any("<" in word or word == "--help" for word in words):
            continue
        recipe = next((word for word in words[script + 1 :] if word.endswith(".yaml")), None)
        values = yaml.safe_load((ROOT / recipe).read_text()) if recipe else {}
        folder = words[words.index("--output_dir") + 1] if "--output_dir" in words else values["output_dir"]
        yield os.path.normpath(folder), " ".join(words)


def test_no_command_of_the_pages_trains_into_the_folder_of_another():
    folders: dict[str, str] = {}
    for folder, command in trained_folders():
        assert folder not in folders, (folders[folder], command)
        folders[folder] = command
    assert len(folders) > 10
    assert any("--push_to_hub" in command for command in folders.values())


@pytest.mark.parametrize("page", PAGES)
def test_a_snippet_that_is_not_run_has_a_reason(page):
    reasons = [snippet.not_run for snippet in snippets_of((ROOT / page).read_text()) if snippet.not_run is not None]
    assert all(len(reason.split()) >= 2 for reason in reasons), reasons


def test_snippets_are_found_with_the_comments_before_them():
    page = (
        "# Title\n<!-- setup:\nx = 1\n-->\n\n```python\nx + 1\n```\n\n<!-- not run: takes ten minutes -->\n\n"
        "```console\n$ make all\n```\n\n- in a list\n\n  ```console\n  $ true\n  ```\n\n```text\nno snippet\n```\n"
    )
    setup, python, long, in_list = snippets_of(page)
    assert (setup.language, setup.text, setup.line) == ("python", "x = 1", 2)
    assert (python.text, python.line, python.not_run) == ("x + 1\n", 6, None)
    assert long.not_run == "takes ten minutes"
    assert (in_list.text, in_list.not_run) == ("$ true\n", None)


def test_a_command_can_go_on_in_the_next_line():
    assert commands_of("$ a \\\n  b\nout\n$ c\n") == [("a \\\n  b", ["out"]), ("c", [])]


@pytest.mark.parametrize(
    ("shown", "missing"),
    [
        (["step 3 of 10"], None),
        (["step 3", "..."], "step 3"),
        (["...", "loss ... done"], None),
        (["loss 0.25 done", "step 1 of 2"], "step 1 of 2"),
        (["gain 0.25 done"], "gain 0.25 done"),
    ],
)
def test_output_is_compared_line_by_line_in_order_whatever_the_numbers(shown, missing):
    assert first_line_not_printed(shown, "step 1 of 2\rstep 2 of 2\nloss 1.5e-3 done\n") == missing
