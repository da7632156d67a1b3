"""The launch configs in examples/accelerate_configs: what they say, and real launches of the example with them."""

import json
import sys
import time
from pathlib import Path

import pytest
from launch import free_port, run_to_end
from paths import ACCELERATE_CONFIGS
from paths import TRAINER_SCRIPT as SCRIPT
from versions import knows_fsdp2, resumes_processes_on_a_cpu

from hf_lpsgd.schedules import annealed_p

ON_CPU = Path(__file__).with_name("on_cpu.py")
CONFIGS = sorted(path.stem for path in ACCELERATE_CONFIGS.glob("*.yaml"))
SECONDS_A_LAUNCH = 400
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


def accelerate_launch(config, folder, *arguments, **environment):
    """Train with the example by `accelerate launch`; gives exit code, output, seconds and what it trained with."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", free_port()]
    config_file, facts = ACCELERATE_CONFIGS / f"{config}.yaml", folder / "facts.json"
    facts.unlink(missing_ok=True)
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
    flags = [str(word) for pair in fixed.items() for word in pair]
    done = run_to_end(
        [*command, "--config_file", config_file, ON_CPU, facts, SCRIPT, "--do_train", *flags, *arguments],
        env={
            "DS_ACCELERATOR": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "TORCHDYNAMO_DISABLE": "1",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            **environment,
        },
        timeout=SECONDS_A_LAUNCH,
    )
    return done.returncode, done.output, json.loads(facts.read_text()) if facts.exists() else {}


def logged_p(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["p"] for entry in history if "learning_rate" in entry]


def test_the_example_trains_with_zero3_and_offload(ranks, tmp_path):
    code, output, facts = accelerate_launch("deepspeed_zero3_offload", tmp_path, "--do_eval", "--max_grad_norm", "0.5")
    assert (facts.get("distributed_type"), facts.get("processes"), facts.get("zero_stage")) == ("DEEPSPEED", 2, 3), (
        output
    )
    assert facts["optimizers"] == ["DeepSpeedOptimizerWrapper", "DeepSpeedZeroOptimizer_Stage3", "LPSGDM"]
    assert facts["config"]["gradient_clipping"] == 0.5
    assert code == 0, output
    assert logged_p(tmp_path / "out") == pytest.approx(EXPECTED_P)
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert "accuracy = " in output


@pytest.fixture(scope="module")
def cut_off(ranks, tmp_path_factory):
    """The folder of a run by multi_gpu.yaml whose first rank was killed while it wrote its second checkpoint."""
    folder = tmp_path_factory.mktemp("cut_off")
    began = time.monotonic()
    code, output, facts = accelerate_launch("multi_gpu", folder, DIE_WRITING_CHECKPOINT="10")
    assert (facts.get("distributed_type"), facts.get("processes")) == ("MULTI_CPU", 2), output
    assert code not in (0, None)
    assert "SIGKILL" in output or "Signal 9" in output, output
    last_sign_of_life = max(path.stat().st_mtime for path in (folder / "out").rglob("*"))
    assert time.time() - last_sign_of_life < 60 < SECONDS_A_LAUNCH - (time.monotonic() - began)
    assert sorted(path.name for path in (folder / "out").glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-5"]
    assert (folder / "out" / "checkpoint-10" / "model.safetensors").exists()
    return folder


def test_a_cut_off_checkpoint_is_refused_with_one_line(cut_off, ranks):
    arguments = ["--do_train", "--use_cpu", "--output_dir", str(cut_off / "out"), "--report_to", "none"]
    checkpoint = str(cut_off / "out" / "checkpoint-10")
    script = {"script": str(SCRIPT), "arguments": [*arguments, "--resume_from_checkpoint", checkpoint]}
    (log,) = ranks.run("run_script", 1, exit_codes=[2], **script).logs
    lines = [line for line in log.splitlines() if checkpoint in line]
    assert len(lines) == 1, log
    assert "is no complete checkpoint" in lines[0]
    assert "Traceback" not in log


@resumes_processes_on_a_cpu
def test_a_run_whose_rank_was_killed_goes_on_from_its_last_complete_checkpoint(cut_off):
    code, output, facts = accelerate_launch("multi_gpu", cut_off, "--resume_from_checkpoint", "True")
    assert (facts.get("distributed_type"), facts.get("processes")) == ("MULTI_CPU", 2), output
    assert code == 0, output
    assert facts["first_step"] == 6
    assert logged_p(cut_off / "out") == pytest.approx(EXPECTED_P)
