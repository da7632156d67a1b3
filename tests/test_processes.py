"""Processes that a launcher started and that do not know of each other: refused before any of them trains."""

import sys
from pathlib import Path

import pytest
from launch import free_port, run_to_end
from paths import ACCELERATE_CONFIGS, EXAMPLES, LOOP_SCRIPT, TRAINER_SCRIPT
from trainer_model import TinyModel
from transformers import Trainer, TrainingArguments
from versions import knows_fsdp2

from hf_lpsgd import LPSGDM
from hf_lpsgd.processes import check_processes, engine_left_out
from hf_lpsgd.trainer import validate_optim_args

NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TORCHDYNAMO_DISABLE": "1"}
TOLD = "The launcher started 2 processes (WORLD_SIZE=2), and only 1 would train together"


@pytest.mark.parametrize("name", ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"])
def test_more_processes_started_than_train_together_are_refused_in_one_line(name, monkeypatch):
    monkeypatch.setenv(name, "4")
    with pytest.raises(ValueError, match=rf"started 4 processes \({name}=4\), and only 2.*--use_cpu True") as error:
        check_processes(2)
    assert "\n" not in str(error.value)
    check_processes(4)


@pytest.mark.parametrize("size", ["", "1", "all"])
def test_one_process_and_an_environment_that_tells_nothing_are_let_pass(size, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", size)
    check_processes(1)


def test_every_trainer_that_trains_with_an_optimizer_of_ours_is_checked(monkeypatch, tmp_path):
    arguments = {"use_cpu": True, "report_to": []}
    ours = TrainingArguments(str(tmp_path), optim="lpsgd", **arguments)
    other = TrainingArguments(str(tmp_path), optim="sgd", **arguments)
    model = TinyModel()
    given = Trainer(model, other, optimizers=(LPSGDM(model.parameters()), None), train_dataset=[{}])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="The launcher started 2 processes"):
        validate_optim_args(ours)
    with pytest.raises(ValueError, match="The launcher started 2 processes"):
        Trainer(model, ours)
    with pytest.raises(ValueError, match="The launcher started 2 processes"):
        given.train()
    assert validate_optim_args(other) is None


def launch(*command, cwd, **environment):
    return run_to_end([sys.executable, "-m", *map(str, command)], cwd=cwd, env={**NO_GPU, **environment}, timeout=240)


def by_config(name):
    config = ACCELERATE_CONFIGS / f"{name}.yaml"
    return ["accelerate.commands.launch", "--main_process_port", free_port(), "--config_file", config]


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
SHOWCASE = [TRAINER_SCRIPT, "--do_train", "--max_steps", "2", "--output_dir", "out"]
CASES = {
    "torchrun, the showcase": (TORCHRUN, [*SHOWCASE, "--optim", "lpsgdm"]),
    "multi_gpu.yaml, the showcase with another optimizer": (by_config("multi_gpu"), [*SHOWCASE, "--optim", "sgd"]),
    "deepspeed_zero2.yaml, the showcase": (
        by_config("deepspeed_zero2"),
        [Path(__file__).parent / "distributed" / "not_compiling.py", *SHOWCASE, "--optim", "lpsgdm"],
    ),
    "torchrun, a script of ten lines": (
        TORCHRUN,
        [EXAMPLES / "minimal_trainer.py", "--optim", "lpsgdm", "--max_steps", "2", "--output_dir", "out"],
    ),
    "torchrun, the loop": (TORCHRUN, [LOOP_SCRIPT, "--max_train_steps", "2", "--output_dir", "out"]),
}


@pytest.fixture(scope="module")
def are_joined_unasked(tmp_path_factory):
    """Whether this Accelerate joins processes on a CPU that are not told to use it, as older ones do."""
    tells = tmp_path_factory.mktemp("state") / "tells.py"
    tells.write_text("from accelerate import PartialState\nprint(PartialState().distributed_type.value)\n")
    done = launch("torch.distributed.run", "--standalone", "--nproc_per_node", "1", tells, cwd=tells.parent)
    assert done.returncode == 0, done.output
    return "MULTI_CPU" in done.output.split()


@pytest.mark.parametrize("case", CASES)
def test_two_processes_on_a_cpu_that_are_not_told_to_use_it_train_together_or_nothing(
    case, are_joined_unasked, tmp_path
):
    launcher, script = CASES[case]
    environment = {"DS_ACCELERATOR": "cpu"} if "zero" in case else {}
    done = launch(*launcher, *script, cwd=tmp_path, **environment)
    if are_joined_unasked:
        assert (done.returncode, TOLD in done.output) == (0, False), done.output[-3000:]
        return
    assert done.returncode != 0
    lines = [line for line in done.output.splitlines() if TOLD in line]
    assert lines, done.output[-3000:]
    assert "--cpu to this script" in lines[0] if "loop" in case else "--use_cpu True" in lines[0]
    assert "train_loss" not in done.output
    assert "AssertionError" not in done.output
    written = [path for path in Path(tmp_path).rglob("*") if path.is_file()]
    assert written == []


def test_an_engine_that_the_launcher_asked_for_and_that_is_not_in_use_is_named(monkeypatch):
    assert engine_left_out("MULTI_CPU") is None
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert engine_left_out("MULTI_CPU") == "FSDP"
    assert engine_left_out("FSDP") is None
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert engine_left_out("NO") == "DEEPSPEED"


@knows_fsdp2
def test_fsdp_that_accelerate_leaves_out_on_a_cpu_is_told_once(tmp_path):
    script = [EXAMPLES / "minimal_trainer.py", "--optim", "lpsgdm", "--max_steps", "2", "--output_dir", "out"]
    done = launch(*by_config("fsdp2"), *script, "--use_cpu", "True", cwd=tmp_path)
    assert done.output.count("The launcher asked for FSDP, and this run trains with MULTI_CPU") == 1, done.output
