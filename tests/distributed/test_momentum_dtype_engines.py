"""momentum_dtype=bfloat16 on two processes: the weights of DDP with every ZeRO stage, and through a checkpoint."""

import json

import pytest
import torch
from versions import resumes_processes_on_a_cpu

LESS_NEEDED = [pytest.param(f"deepspeed_zero{stage}", marks=pytest.mark.exhaustive) for stage in (1, 2)]
ZERO3_TOO = pytest.param("deepspeed_zero3", marks=pytest.mark.exhaustive)
IN_FLOAT32 = {"optim_args": "p_max=20,grad_rms=0.01", "max_steps": 8}
SAVING = {
    "optim_args": "p_max=20,grad_rms=0.01,momentum_dtype=bfloat16",
    "max_steps": 8,
    "save_strategy": "steps",
    "save_steps": 4,
    "save_total_limit": 1,
}


@pytest.mark.parametrize("engine", [*LESS_NEEDED, "deepspeed_zero3"])
def test_zero_trains_as_ddp_does(engine, ranks):
    ddp, zero = (ranks.train(name, arguments=SAVING) for name in ("multi_gpu", engine))
    assert zero.is_bit_for_bit(ddp)
    in_float32 = ranks.train("multi_gpu", arguments=IN_FLOAT32)
    assert not ddp.is_bit_for_bit(in_float32)


@pytest.mark.parametrize(
    "engine", [pytest.param("multi_gpu", marks=resumes_processes_on_a_cpu), *LESS_NEEDED, ZERO3_TOO]
)
def test_a_killed_run_goes_on_bit_for_bit_with_the_momentum_in_it(engine, ranks):
    straight = ranks.train(engine, arguments=SAVING)
    killed = ranks.train(engine, arguments=SAVING, kill_at=6, exit_codes=[-9, -9])
    (checkpoint,) = (killed.folder / "out").glob("checkpoint-*")
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == 4
    buffers = [value for key, value in tensors_of(checkpoint) if key == "momentum_buffer"]
    assert buffers
    assert {buffer.dtype for buffer in buffers} == {torch.bfloat16}
    resumed = ranks.train(engine, arguments=SAVING, resume=str(checkpoint))
    assert resumed.is_bit_for_bit(straight)


def tensors_of(checkpoint):
    """All tensors in the files of a checkpoint's optimizer, by the last key of each."""
    files = [*checkpoint.glob("optimizer.pt"), *checkpoint.glob("global_step*/*optim_states.pt")]
    found = []

    def walk(key, value):
        if isinstance(value, torch.Tensor):
            found.append((key, value))
        elif isinstance(value, dict):
            for name, item in value.items():
                walk(name, item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                walk(key, item)

    for file in files:
        walk("", torch.load(file, map_location="cpu", weights_only=False))
    return found
