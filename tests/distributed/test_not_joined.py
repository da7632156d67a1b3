"""Two processes on a CPU that are not told to use it, as launchers start them: they train together or not at all."""

import pytest
from paths import EXAMPLES, LOOP_SCRIPT, TRAINER_SCRIPT

TOLD = "The launcher started 2 processes (WORLD_SIZE=2), and only 1 would train together"
SHOWCASE = [TRAINER_SCRIPT, "--do_train", "--max_steps", "2", "--output_dir", "out"]
MINIMAL = [EXAMPLES / "minimal_trainer.py", "--optim", "lpsgdm", "--max_steps", "2", "--output_dir", "out"]
# The launch config, if it is not torchrun, and the script.
CASES = {
    "torchrun, the showcase": (None, [*SHOWCASE, "--optim", "lpsgdm"]),
    "multi_gpu.yaml, the showcase with another optimizer": ("multi_gpu", [*SHOWCASE, "--optim", "sgd"]),
    "deepspeed_zero2.yaml, the showcase": ("deepspeed_zero2", [*SHOWCASE, "--optim", "lpsgdm"]),
    "torchrun, a script of ten lines": (None, MINIMAL),
    "torchrun, the loop": (None, [LOOP_SCRIPT, "--max_train_steps", "2", "--output_dir", "out"]),
}


@pytest.fixture
def run_two(forks, rank_server, ranks, tmp_path):
    """Runs a script in two ranks as a launch config, or torchrun, starts them; exit statuses and output."""

    def run(config, script):
        environment = ranks.launch_config(config)["environment"] if config else {}
        server = rank_server if "ACCELERATE_USE_DEEPSPEED" in environment else forks
        two = server.run_ranks(2, *script, env=environment, cwd=tmp_path)
        return [rank.status for rank in two], "".join(rank.output for rank in two)

    return run


@pytest.fixture(scope="module")
def are_joined_unasked(forks, tmp_path_factory):
    """Whether this Accelerate joins processes on a CPU that are not told to use it, as older ones do."""
    tells = tmp_path_factory.mktemp("state") / "tells.py"
    tells.write_text("from accelerate import PartialState\nprint(PartialState().distributed_type.value)\n")
    first, second = forks.run_ranks(2, tells)
    assert first.status == second.status == 0, first.output + second.output
    return "MULTI_CPU" in first.output.split()


@pytest.mark.parametrize("case", CASES)
def test_two_processes_on_a_cpu_that_are_not_told_to_use_it_train_together_or_nothing(
    case, are_joined_unasked, run_two, tmp_path
):
    statuses, output = run_two(*CASES[case])
    if are_joined_unasked:
        assert (statuses, TOLD in output) == ([0, 0], False), output[-3000:]
        return
    assert 0 not in statuses
    lines = [line for line in output.splitlines() if TOLD in line]
    assert lines, output[-3000:]
    assert "--cpu to this script" in lines[0] if "loop" in case else "--use_cpu True" in lines[0]
    assert "train_loss" not in output
    assert "AssertionError" not in output
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
