"""The command on a model card is the one that was typed, or is said to be an equivalent one."""

import os
import subprocess
import sys

import pytest
from card import command as card_command
from card.command import command_of
from paths import IMAGE_CLASSIFICATION

TOKEN = "hf_neverToBeSeen0123456789"
ARGUMENTS = ["--do_train", "--run_name", "two words"]
SHOWN = "--do_train --run_name 'two words'"
# A script that tells its own command.
SCRIPT = """\
import sys

from card.command import command_of

command = command_of(sys.argv)
print("told", command.is_typed, command.line)
"""


@pytest.fixture
def started(monkeypatch):
    """Sets how this process seems to have been started."""

    def set_up(own, *parents, **environment):
        for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ACCELERATE_DYNAMO_USE_FULLGRAPH"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "orig_argv", own)
        chain = {number: (command, number + 1) for number, command in enumerate(parents, 1)}
        monkeypatch.setattr(card_command.os, "getppid", lambda: 1)
        monkeypatch.setattr(card_command, "_process", lambda number: chain.get(number, ([], 0)))

    return set_up


@pytest.mark.parametrize(
    "start",
    [
        ["python", "train.py"],
        ["python3.11", "-u", "../code/train.py"],
        ["accelerate", "launch", "--config_file", "configs/multi_gpu.yaml", "train.py"],
        ["accelerate", "launch", "-m", "hf_lpsgd", "train.py"],
        ["torchrun", "--nproc_per_node", "2", "train.py"],
        ["python", "-m", "torch.distributed.run", "--nproc_per_node", "2", "train.py"],
        ["deepspeed", "--num_gpus", "2", "train.py"],
    ],
    ids=" ".join,
)
def test_the_command_that_was_typed_is_shown(started, start):
    argv, own = [start[-1], *ARGUMENTS], [*start, *ARGUMENTS]
    if start[0] in ("accelerate", "torchrun", "deepspeed"):
        launcher = ["/venv/bin/python3", f"/venv/bin/{start[0]}", *own[1:]]
        started(["/venv/bin/python3", "-u", *argv], launcher, ["bash"], WORLD_SIZE="2")
    elif "torch.distributed.run" in start:
        started(["/venv/bin/python3", "-u", *argv], own, WORLD_SIZE="2")
    else:
        started(own, ["make", "demo"])
    command = command_of(argv)
    assert command.line == f"{' '.join(start)} {SHOWN}"
    assert command.is_typed


def test_a_launcher_that_was_started_by_another_is_not_shown_for_it(started):
    argv = ["train.py", *ARGUMENTS]
    inner = ["/venv/bin/python", "-m", "torch.distributed.run", *argv]
    outer = ["/venv/bin/python", "/venv/bin/accelerate", "launch", "--num_processes", "2", *argv]
    started(["/venv/bin/python", *argv], inner, outer, WORLD_SIZE="2")
    assert command_of(argv).line == f"accelerate launch --num_processes 2 train.py {SHOWN}"


@pytest.mark.parametrize(
    ("environment", "start"),
    [
        ({}, "python"),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, "torchrun --nproc_per_node 2"),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, "torchrun --nnodes 2 --nproc_per_node 2"),
        (
            {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False"}
            | {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
            "accelerate launch --use_deepspeed --zero_stage 3 --num_processes 2",
        ),
        (
            {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False"}
            | {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
            "accelerate launch --use_fsdp --fsdp_version 2 --num_processes 2",
        ),
    ],
)
def test_a_command_that_is_not_known_is_an_equivalent_one_by_its_title(started, environment, start):
    started(["/usr/bin/python", "something_else.py"], **environment)
    command = command_of(["train.py", *ARGUMENTS])
    assert command.line == f"{start} train.py {SHOWN}"
    assert not command.is_typed


def test_an_unknown_launcher_is_not_passed_over(started):
    argv = ["train.py", *ARGUMENTS]
    started(["python", *argv], ["srun", "python", *argv], WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    assert not command_of(argv).is_typed


@pytest.mark.parametrize(
    ("script", "shown"),
    [
        ("code/train.py", "code/train.py"),
        ("../code/train.py", "../code/train.py"),
        ("{here}/code/train.py", "code/train.py"),
        ("{home}/code/train.py", "~/code/train.py"),
        ("{home}/two words/train.py", "~/'two words/train.py'"),
        ("/opt/code/train.py", "/opt/code/train.py"),
        ("/home/somebody/train.py", ".../train.py"),
    ],
)
def test_the_path_of_the_script_is_not_cut_and_names_no_home(started, monkeypatch, tmp_path, script, shown):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    script = script.format(here=tmp_path / "here", home=tmp_path / "home")
    started(["python", script, "--do_train"])
    command = command_of([script, "--do_train"])
    assert command.line == f"python {shown} --do_train"
    assert command.is_typed == (script == shown)


@pytest.mark.parametrize(
    "given",
    [
        ["--hub_token", TOKEN],
        [f"--hub_token={TOKEN}"],
        [f"--hub-token={TOKEN}"],
        ["--wandb_api_key", TOKEN],
        ["-x" + TOKEN],
        ["--proxy", f"http://me:{TOKEN}@host"],
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_command_holds_no_token_and_all_else(started, given, known):
    argv = ["train.py", "--do_train", *given, "--run_name", "two words"]
    started(["python", *argv] if known else ["pytest"])
    command = command_of(argv, [TOKEN, None])
    assert TOKEN not in command.line
    assert not command.is_typed
    assert command.line.startswith("python train.py --do_train ")
    assert command.line.endswith(" --run_name 'two words'")
    assert TOKEN not in command_of(argv).line
    if given[0].startswith("--") and "proxy" not in given[0]:
        assert command.line == "python train.py --do_train --run_name 'two words'"


def test_a_token_among_the_options_of_the_launcher_is_not_shown(started):
    argv = ["train.py", *ARGUMENTS]
    started(["python", *argv], ["torchrun", "--secret", "abc", "--nproc_per_node", "2", *argv], WORLD_SIZE="2")
    assert command_of(argv).line == f"torchrun --nproc_per_node 2 train.py {SHOWN}"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="the system does not tell commands of processes")
@pytest.mark.parametrize(
    "launcher",
    [[], ["-m", "hf_lpsgd"], ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]],
    ids=["alone", "by the runner", "by torchrun"],
)
def test_a_real_process_finds_its_own_command(tmp_path, launcher):
    (tmp_path / "tell.py").write_text(SCRIPT)
    # By a path that is relative, as an absolute one is cut to its name.
    start = [os.path.relpath(sys.executable, tmp_path), *launcher, "tell.py"]
    done = subprocess.run(
        [*start, "--run_name", "two words"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(IMAGE_CLASSIFICATION), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert f"told True {' '.join(start)} --run_name 'two words'" in done.stdout.splitlines(), done.stderr
