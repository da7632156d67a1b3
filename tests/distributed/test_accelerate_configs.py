"""The launch configs in examples/accelerate_configs: what they say, and real launches of the example with them."""

import json
import time
from pathlib import Path

import pytest
from launch import launch, port_kept_free
from paths import ACCELERATE_CONFIGS
from paths import TRAINER_SCRIPT as SCRIPT
from reference import annealed_p
from versions import knows_fsdp2, resumes_processes_on_a_cpu

ON_CPU = Path(__file__).with_name("on_cpu.py")
CONFIGS = sorted(path.stem for path in ACCELERATE_CONFIGS.glob("*.yaml"))
SECONDS_A_LAUNCH = 400
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
STEPS = 12
EXPECTED_P = [annealed_p("cosine", 20.0, step, STEPS) for step in range(STEPS)]


def test_there_is_a_config_for_every_engine():
    assert CONFIGS == [
        "deepspeed_zero1",
        "deepspeed_zero2",
        "deepspeed_zero3",
        "deepspeed_zero3_offload",
        "fsdp2",
        "multi_gpu",
    ]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_starts_two_processes_of_its_engine_in_the_scripts_precision(name, ranks):
    launch = ranks.launch_config(name)
    kind = name.partition("_")[0].rstrip("2")
    assert launch["distributed_type"] == {"multi": "MULTI_GPU", "fsdp": "FSDP", "deepspeed": "DEEPSPEED"}[kind]
    assert launch["processes"] == 2
    assert launch["environment"]["ACCELERATE_MIXED_PRECISION"] == "no"
    assert ("deepspeed" in launch, "fsdp" in launch) == (kind == "deepspeed", kind == "fsdp")


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("deepspeed")])
def test_deepspeed_configs_say_what_their_names_say_and_leave_the_rest_to_the_scripts_flags(name, ranks):
    config = ranks.launch_config(name)["deepspeed"]
    zero = config["zero_optimization"]
    assert zero["stage"] == int(name.removeprefix("deepspeed_zero")[0])
    device = "cpu" if name.endswith("offload") else "none"
    assert (zero["offload_optimizer"]["device"], zero["offload_param"]["device"]) == (device, device)
    assert zero["stage3_gather_16bit_weights_on_model_save"] == (zero["stage"] == 3)
    flags = ("gradient_clipping", "gradient_accumulation_steps", "train_batch_size", "train_micro_batch_size_per_gpu")
    assert [config[flag] for flag in flags] == ["auto"] * len(flags)
    assert "optimizer" not in config
    assert "scheduler" not in config


@knows_fsdp2
def test_fsdp2_is_version_2_and_saves_whole_models(ranks):
    fsdp = ranks.launch_config("fsdp2")["fsdp"]
    assert fsdp["fsdp_version"] == "2"
    assert "FULL_STATE_DICT" in fsdp["state_dict_type"]
    assert "transformer_auto_wrap_policy" in fsdp["auto_wrap_policy"]
    assert fsdp["reshard_after_forward"] == "True"
    assert fsdp["cpu_offload"] == "OffloadPolicy()"


def arguments(folder, *more):
    """Arguments of on_cpu.py for a run of the example in a folder, whose facts it writes there too."""
    fixed = {
        "--output_dir": folder / "out",
        "--optim": "lpsgdm",
        "--optim_args": "p_max=20",
        "--max_steps": STEPS,
        "--warmup_steps": 0,
        "--save_strategy": "steps",
        "--save_steps": 5,
        "--eval_strategy": "no",
        "--logging_steps": 1,
        "--report_to": "none",
        "--max_train_samples": 400,
        "--max_eval_samples": 40,
    }
    return [folder / "facts.json", SCRIPT, "--do_train", *(word for pair in fixed.items() for word in pair), *more]


@pytest.fixture
def train(rank_server, ranks):
    """Trains with the example as two ranks that a launch config describes; gives their output and the facts."""

    def run(config, folder, *more):
        environment = ranks.launch_config(config)["environment"]
        two = rank_server.run_ranks(2, ON_CPU, *arguments(folder, *more), env=environment)
        output = "".join(rank.output for rank in two)
        assert [rank.status for rank in two] == [0, 0], output
        return output, json.loads((folder / "facts.json").read_text())

    return run


def logged_p(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["p"] for entry in history if "learning_rate" in entry]


def test_the_example_trains_with_zero3_and_offload(train, tmp_path):
    output, facts = train("deepspeed_zero3_offload", tmp_path, "--do_eval", "--max_grad_norm", "0.5")
    assert (facts["distributed_type"], facts["processes"], facts["zero_stage"]) == ("DEEPSPEED", 2, 3)
    assert facts["optimizers"] == ["DeepSpeedOptimizerWrapper", "DeepSpeedZeroOptimizer_Stage3", "LPSGDM"]
    assert facts["config"]["gradient_clipping"] == 0.5
    assert logged_p(tmp_path / "out") == pytest.approx(EXPECTED_P)
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert "accuracy = " in output


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory):
    """The folder of a run by multi_gpu.yaml whose first rank was killed while it wrote its second checkpoint."""
    folder = tmp_path_factory.mktemp("cut_off")
    began = time.monotonic()
    config = ACCELERATE_CONFIGS / "multi_gpu.yaml"
    with port_kept_free() as port:
        command = ["accelerate.commands.launch", "--main_process_port", port, "--config_file", config, ON_CPU]
        environment = {**ENVIRONMENT, "DIE_WRITING_CHECKPOINT": "10"}
        status, output = launch(*command, *arguments(folder), env=environment, timeout=SECONDS_A_LAUNCH)
    facts = json.loads((folder / "facts.json").read_text())
    assert (facts["distributed_type"], facts["processes"]) == ("MULTI_CPU", 2), output
    assert status not in (0, None)
    assert "SIGKILL" in output or "Signal 9" in output, output
    last_sign_of_life = max(path.stat().st_mtime for path in (folder / "out").rglob("*"))
    assert time.time() - last_sign_of_life < 60 < SECONDS_A_LAUNCH - (time.monotonic() - began)
    assert sorted(path.name for path in (folder / "out").glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-5"]
    assert (folder / "out" / "checkpoint-10" / "model.safetensors").exists()
    return folder


def test_a_cut_off_checkpoint_is_refused_with_one_line(cut_off, rank_server):
    checkpoint = str(cut_off / "out" / "checkpoint-10")
    flags = ["--do_train", "--use_cpu", "--output_dir", cut_off / "out", "--report_to", "none"]
    run = rank_server.run(SCRIPT, *flags, "--resume_from_checkpoint", checkpoint)
    assert run.status == 2
    lines = [line for line in run.output.splitlines() if checkpoint in line]
    assert len(lines) == 1, run.output
    assert "is no complete checkpoint" in lines[0]
    assert "Traceback" not in run.output


@resumes_processes_on_a_cpu
def test_a_run_whose_rank_was_killed_goes_on_from_its_last_complete_checkpoint(cut_off, train):
    _, facts = train("multi_gpu", cut_off, "--resume_from_checkpoint", "True")
    assert (facts["distributed_type"], facts["processes"]) == ("MULTI_CPU", 2)
    assert facts["first_step"] == 6
    assert logged_p(cut_off / "out") == pytest.approx(EXPECTED_P)
