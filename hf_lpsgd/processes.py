"""Whether a run is the one that its launcher was requested to start: its processes, and the engine that joins them."""

import os

from .notices import warn_user

# The number of processes and the place of this one, as torchrun and Accelerate set them, and then MPI launchers.
_SIZES = {
    "WORLD_SIZE": "RANK",
    "PMI_SIZE": "PMI_RANK",
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK",
    "MV2_COMM_WORLD_SIZE": "MV2_COMM_WORLD_RANK",
}

# What torchrun and `accelerate launch` set in every process that they start.
_OF_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_USE_CPU")

# What `accelerate launch` sets for an engine, and what Accelerate calls it.
_ENGINES = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DEEPSPEED"}


def check_processes(num_processes: int, in_a_loop: str = "cpu=True to the Accelerator") -> None:
    """Fail where a launcher started more processes than train together.

    Without a GPU, Accelerate joins them only if it is told to use the CPU. Otherwise each of them trains a whole model
    of its own, and all write the same output folder. A variable that nothing else confirms is taken for a leftover,
    and is a warning.

    Args:
        num_processes: how many processes train together, by `TrainingArguments.world_size` or
            `Accelerator.num_processes`.
        in_a_loop: for the message, what makes a script without a Trainer use the CPU.

    Raises:
        ValueError: says how many processes there are, and how to join them.
    """
    for name, rank in _SIZES.items():
        size = os.environ.get(name, "")
        if not size.isdecimal() or int(size) <= num_processes:
            continue
        if num_processes > 1 or any(other in os.environ for other in (rank, *_OF_LAUNCHERS)):
            raise ValueError(
                f"The launcher started {size} processes ({name}={size}), and only {num_processes} would train "
                "together, so that each trains a model of its own and writes the same files. Without a GPU, pass "
                f"--use_cpu True to a Trainer script, or {in_a_loop}. Otherwise start one process."
            )
        warn_user(
            f"{name}={size} is set, but no launcher is at work, and this process trains alone. If that is meant, "
            f"unset {name}; otherwise start the script by torchrun or accelerate launch."
        )


def engines_requested() -> list[str]:
    """Return the engines that `accelerate launch` was requested to use, by Accelerate's names."""
    return [engine for name, engine in _ENGINES.items() if os.environ.get(name, "").lower() == "true"]


def engine_left_out(distributed_type: str) -> str | None:
    """Return the engine that was requested of `accelerate launch`, if it is not `distributed_type`, the one in use.

    Accelerate leaves FSDP out where it is told to use the CPU or starts one process, and says nothing.
    """
    return next((engine for engine in engines_requested() if engine != distributed_type), None)
