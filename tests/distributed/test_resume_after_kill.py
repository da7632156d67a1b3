"""Runs of two ranks that are killed between checkpoints, and what is left of them."""

import json
import shutil
import time

import pytest
from versions import resumes_processes_on_a_cpu

ENGINES = ["multi_gpu", "deepspeed_zero2", "deepspeed_zero3"]
STEPS, SAVED, KILLED = 10, 4, 7
SAVING = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": SAVED}
KILL = -9
exhaustive = pytest.mark.exhaustive


@pytest.fixture
def killed(ranks):
    """A function that gives the checkpoint left by a run of this engine whose ranks were all killed at once."""

    def run(engine):
        run = ranks.train(engine, arguments=SAVING, kill_at=KILLED, exit_codes=[KILL, KILL])
        (checkpoint,) = (run.folder / "out").glob("checkpoint-*")
        assert checkpoint.name == f"checkpoint-{SAVED}"
        return checkpoint

    return run


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("multi_gpu", marks=resumes_processes_on_a_cpu),
        "deepspeed_zero2",
        pytest.param("deepspeed_zero3", marks=exhaustive),
    ],
)
def test_a_killed_run_that_is_resumed_ends_bit_for_bit_as_the_uninterrupted_one(engine, killed, ranks):
    straight = ranks.train(engine, arguments=SAVING)
    resumed = ranks.train(engine, arguments=SAVING, resume=str(killed(engine)))
    assert straight.logged("step") == resumed.logged("step") == list(range(1, STEPS + 1))
    for key in ("p", "learning_rate", "loss", "grad_norm"):
        assert straight.logged(key) == resumed.logged(key)
    assert len(set(resumed.logged("p")[SAVED:])) == STEPS - SAVED
    assert resumed.is_bit_for_bit(straight)


def test_a_zero3_checkpoint_made_plain_by_deepspeeds_own_script_loads_with_from_pretrained(killed, ranks):
    checkpoint = killed("deepspeed_zero3")
    plain = checkpoint.parent / "plain"
    script = str(checkpoint / "zero_to_fp32.py")
    ranks.run("run_script", 1, script=script, arguments=[str(checkpoint), str(plain), "--safe_serialization"])
    shutil.copy(checkpoint / "config.json", plain)
    loaded = ranks.run("weights_from_pretrained", 1, model=str(plain))
    assert not any(loaded.facts.values())
    saved = ranks.run("weights_from_pretrained", 1, model=str(checkpoint))
    assert not any(saved.facts.values())
    assert loaded.is_bit_for_bit(saved)
    start = ranks.run("write_start", 1)
    assert loaded.difference(start) > 1e-3


@pytest.mark.parametrize("engine", ["multi_gpu", pytest.param("deepspeed_zero2", marks=exhaustive), "deepspeed_zero3"])
def test_when_one_rank_is_killed_the_other_fails_soon_and_the_checkpoint_is_intact(engine, killed, ranks):
    began = time.monotonic()
    run = ranks.train(engine, arguments=SAVING, kill_at=KILLED, kill_rank=1, exit_codes=[1, KILL])
    assert time.monotonic() - began < 60
    assert "Error" in run.logs[0]
    checkpoint = run.folder / "out" / f"checkpoint-{SAVED}"
    json.loads((checkpoint / "trainer_state.json").read_text())
    mine, others = (ranks.run("weights_from_pretrained", 1, model=str(path)) for path in (checkpoint, killed(engine)))
    assert not any(mine.facts.values())
    assert mine.is_bit_for_bit(others)
