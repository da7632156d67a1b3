"""grad_rms=auto on two processes: one number for all, whatever the engine, in the checkpoint and after it."""

import json

import pytest
import torch
from versions import resumes_processes_on_a_cpu

from hf_lpsgd.optim.measurement import FEWEST_UPDATES

ZERO = ["deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3"]
STEPS, SAVED, KILLED = 26, 8, 10
# With 5 classes the partitions of two processes are padded.
MEASURING = {"optim_args": "p_max=20,grad_rms=auto", "max_steps": STEPS}
SAVING = {**MEASURING, "save_strategy": "steps", "save_steps": SAVED, "save_total_limit": 1}
KILL = -9
exhaustive = pytest.mark.exhaustive


def sizes(run):
    return run.logged("grad_rms")


def test_replicas_measure_what_one_process_does_with_their_global_batch(ranks):
    one = ranks.train("one", arguments={**MEASURING, "per_device_train_batch_size": 8}, classes=5)
    two = ranks.train("multi_gpu", arguments=SAVING, classes=5)
    assert sizes(one) == pytest.approx(sizes(two), rel=1e-4)
    assert len(set(sizes(two)[FEWEST_UPDATES - 1 :])) == 1
    assert len(set(sizes(two))) == FEWEST_UPDATES
    assert one.logged("loss") == pytest.approx(two.logged("loss"), rel=1e-4)


@pytest.mark.parametrize("engine", ZERO)
def test_zero_measures_what_ddp_does_and_trains_alike(engine, ranks):
    ddp, zero = (ranks.train(name, arguments=SAVING, classes=5) for name in ("multi_gpu", engine))
    assert zero.facts["padding"] > 0
    assert sizes(zero) == sizes(ddp)
    assert ddp.is_bit_for_bit(zero)


@pytest.mark.parametrize("engine", [pytest.param(engine, marks=exhaustive) for engine in ZERO[:2]] + ZERO[2:])
def test_with_a_frozen_number_zero_trains_as_ddp_does(engine, ranks):
    frozen = {"optim_args": f"p_max=20,grad_rms={sizes(ranks.train('multi_gpu', arguments=SAVING, classes=5))[-1]}"}
    ddp, zero = (ranks.train(name, arguments=frozen, classes=5) for name in ("multi_gpu", engine))
    assert zero.is_bit_for_bit(ddp)


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("multi_gpu", marks=resumes_processes_on_a_cpu),
        pytest.param("deepspeed_zero2", marks=exhaustive),
        "deepspeed_zero3",
    ],
)
def test_a_run_killed_while_it_measures_goes_on_bit_for_bit(engine, ranks):
    straight = ranks.train(engine, arguments=SAVING, classes=5)
    killed = ranks.train(engine, arguments=SAVING, classes=5, kill_at=KILLED, exit_codes=[KILL, KILL])
    (checkpoint,) = (killed.folder / "out").glob("checkpoint-*")
    assert checkpoint.name == f"checkpoint-{SAVED}"
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    assert history[-1]["grad_rms"] == sizes(straight)[SAVED - 1]
    resumed = ranks.train(engine, arguments=SAVING, classes=5, resume=str(checkpoint))
    assert sizes(resumed) == sizes(straight)
    assert resumed.is_bit_for_bit(straight)


def test_processes_that_train_models_of_their_own_exchange_nothing(ranks):
    together = ranks.run("train_models_of_their_own")
    for rank in range(2):
        alone = ranks.run("train_models_of_their_own", 1, rank=rank)
        own, other = (torch.load(run.folder / f"{rank}.pt") for run in (together, alone))
        assert own["size"] == other["size"]
        assert torch.equal(own["weight"], other["weight"])


def test_a_rank_whose_shard_has_no_gradient_at_a_rate_of_0_waits_for_the_others(ranks):
    run = ranks.run("warm_up_where_the_shard_of_one_rank_has_no_gradient")
    one, other = (json.loads((run.folder / f"{rank}.json").read_text()) for rank in range(2))
    assert (one["own"], other["own"]) == ([True, False], [False, True])
    assert one["sizes"] == other["sizes"]
    assert one["sizes"][0] > 0


@pytest.mark.parametrize("name", ["sharded", "flat"])
def test_fsdp1_measures_over_its_shards_what_one_process_does(name, ranks):
    facts = ranks.run("measure_with_fsdp1").facts
    assert facts[name]["engine"] == "FullyShardedDataParallel"
    assert facts[name]["elements"] < facts["whole"]["elements"] == 35  # an odd number, so that a shard is padded
    assert facts[name]["sizes"] == pytest.approx(facts["whole"]["sizes"], rel=1e-4)
