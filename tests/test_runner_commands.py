"""The runner finds the command that it is given, be it a script of this interpreter or a program on PATH."""

import os
import shutil
import subprocess
import sys

import pytest
from launch import python, write
from under_runner import ENVIRONMENT, PACKAGE, REACHED

SHOW = f"import sys; print('{{}}', sys.argv[1:], {REACHED})"


def console_script(path, says, interpreter=sys.executable):
    write(path, f"#!{interpreter}\n{SHOW.format(says)}\n")
    path.chmod(0o755)


@pytest.fixture
def tools(tmp_path):
    """An interpreter with a console script beside it, and folders on PATH with console scripts and other commands."""
    for folder, names in {"venv": ["train", "sft"], "path": ["sft", "tool"]}.items():
        for name in names:
            console_script(tmp_path / folder / name, f"{folder}/{name}")
    write(tmp_path / "path" / "shell", f'#!/bin/sh\nexec {sys.executable} -c "{SHOW.format("shell")}" $@\n')
    (tmp_path / "path" / "shell").chmod(0o755)
    interpreter = tmp_path / "venv" / "python"
    interpreter.symlink_to(sys.executable)
    env = {**ENVIRONMENT, "PATH": f"{tmp_path / 'path'}{os.pathsep}{ENVIRONMENT['PATH']}"}
    work = tmp_path / "work"
    work.mkdir()

    def run(*arguments):
        command = [interpreter, "-m", "hf_lpsgd", *arguments]
        return subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, timeout=60)

    return work, run


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["train", "-x", "a b"], "venv/train ['-x', 'a b'] True"),
        (["sft"], "venv/sft [] True"),  # and not the one on PATH
        (["tool", "--optim", "lpsgdm"], "path/tool ['--optim', 'lpsgdm'] True"),
        (["../path/tool"], "path/tool [] True"),
        (["shell", "a"], "shell ['a'] True"),
        (["../path/shell", "a"], "shell ['a'] True"),
        (["sh", "-c", "exec shell a"], "shell ['a'] True"),
        (["python", "-c", SHOW.format("python")], "python [] True"),
        ([sys.executable, "-c", SHOW.format("python")], "python [] True"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else None,
)
def test_a_command_is_found_beside_the_interpreter_and_then_on_path(tools, command, says):
    _, run = tools
    result = run(*command)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{says}\n", "")


def test_a_folder_counts_only_if_it_can_be_run_and_a_file_counts(tools):
    work, run = tools
    write(work / "sft" / "module.py", "")
    assert run("sft").stdout == "venv/sft [] True\n"
    write(work / "sft" / "__main__.py", SHOW.format("folder"))
    assert run("sft").stdout == "folder [] True\n"
    write(work / "train", SHOW.format("file"))
    assert run("train").stdout == "file [] True\n"


def test_the_interpreter_of_a_script_is_told_by_its_name(tools):
    work, run = tools
    (work / "python-tools").mkdir()
    (work / "python-tools" / "bash").symlink_to(shutil.which("sh"))
    write(work / "script", f"#!{work}/python-tools/bash\necho shell\n")
    (work / "script").chmod(0o755)
    assert run("./script").stdout == "shell\n"


def test_a_clone_that_the_current_folder_alone_finds_is_known_to_the_command(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "hf_lpsgd", ignore=shutil.ignore_patterns("__pycache__"))
    write(tmp_path / "script.py", f"import sys; print({REACHED}, sys.path.count({str(tmp_path)!r}))")
    env = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"}
    done = python(tmp_path, "-S", "-c", "import hf_lpsgd.runner as r, sys; print(r.__file__)", env=env)
    assert done.stdout.startswith(str(tmp_path))
    path = {**env, "PYTHONPATH": str(tmp_path / "hf_lpsgd" / "children")}
    assert python(tmp_path, "script.py", env=path).stdout == "True 1\n"
