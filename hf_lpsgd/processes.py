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


def check_processes(num_processes: int, in_a_loop: str = "cpu=True to the Accelerator") -> None:
    """Fail where a launcher started more processes than train together.

    Without a GPU, Accelerate joins them only if it is told to use the CPU. Otherwise each trains a model of its own,
    and all write the same files. A variable that nothing else confirms is taken for a leftover, and is a warning.

    Args:
        num_processes: how many train together, by `TrainingArguments.world_size` or `Accelerator.num_processes`.
        in_a_loop: for the message, what makes a script without a Trainer use the CPU.

    Raises:
        ValueError: says how many processes there are, and how to join them.
    """
    for name, rank in _SIZES.items():
        size = os.environ.get(name, "")
        if not size.isdecimal() or int(size) <= num_processes:
            continue
        # The last two are set by torchrun and `accelerate launch` in every process that they start.
        if num_processes > 1 or any(one in os.environ for one in (rank, "TORCHELASTIC_RUN_ID", "ACCELERATE_USE_CPU")):
            raise ValueError(
                f"The launcher started {size} processes ({name}={size}), and only {num_processes} would train "
                "together; each would train a model of its own and write the same files. Without a GPU, pass "
                f"--use_cpu True to a Trainer script, or {in_a_loop}. Otherwise start one process."
            )
        warn_user(
            f"{name}={size} is set, but no launcher is at work, and this process trains alone. Unset {name}, or "
            "start the script by torchrun or accelerate launch."
        )


def engines_requested() -> list[str]:
    """Return the engines that `accelerate launch` was requested to use, by Accelerate's names."""
    return [name for name in ("FSDP", "DEEPSPEED") if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true"]
