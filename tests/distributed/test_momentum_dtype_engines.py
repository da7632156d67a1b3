"""momentum_dtype on two processes: the weights of DDP with every ZeRO stage, and through a checkpoint."""

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
IN_FLOAT8 = {**SAVING, "optim_args": "p_max=20,momentum_dtype=float8,rounding=stochastic"}


@pytest.mark.parametrize("engine", [*LESS_NEEDED, "deepspeed_zero3"])
def test_zero_trains_as_ddp_does(engine, ranks):
    ddp, zero = (ranks.train(name, arguments=SAVING) for name in ("multi_gpu", engine))
    assert zero.is_bit_for_bit(ddp)
    in_float32 = ranks.train("multi_gpu", arguments=IN_FLOAT32)
    assert not ddp.is_bit_for_bit(in_float32)


@pytest.mark.parametrize("engine", [*LESS_NEEDED, "deepspeed_zero3"])
def test_zero_trains_with_float8_nearly_as_ddp_does(engine, ranks):
    ddp, zero = (ranks.train(name, arguments=IN_FLOAT8) for name in ("multi_gpu", engine))
    # Other partitions draw other random numbers: 8 steps of at most 1.5e-3 differ where a momentum changes its sign.
    assert 0 < zero.change_difference(ddp, ranks.run("write_start", 1).weights) < 0.25
    assert zero.logged("grad_rms") == pytest.approx(ddp.logged("grad_rms"), rel=1e-2)


@pytest.mark.parametrize(
    ("engine", "arguments", "dtype"),
    [
        pytest.param("multi_gpu", SAVING, torch.bfloat16, marks=resumes_processes_on_a_cpu),
        *(
            pytest.param(*engine.values, SAVING, torch.bfloat16, marks=engine.marks)
            for engine in (*LESS_NEEDED, ZERO3_TOO)
        ),
        pytest.param("multi_gpu", IN_FLOAT8, torch.uint8, marks=resumes_processes_on_a_cpu),
        *(pytest.param(*engine.values, IN_FLOAT8, torch.uint8, marks=engine.marks) for engine in LESS_NEEDED),
        ("deepspeed_zero3", IN_FLOAT8, torch.uint8),
    ],
)
def test_a_killed_run_goes_on_bit_for_bit_with_the_momentum_in_it(engine, arguments, dtype, ranks):
    straight = ranks.train(engine, arguments=arguments)
    killed = ranks.train(engine, arguments=arguments, kill_at=6, exit_codes=[-9, -9])
    (checkpoint,) = (killed.folder / "out").glob("checkpoint-*")
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == 4
    buffers = [value for key, value in tensors_of(checkpoint) if key == "momentum_buffer"]
    assert buffers
    assert {buffer.dtype for buffer in buffers} == {dtype}
    resumed = ranks.train(engine, arguments=arguments, resume=str(checkpoint))
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
