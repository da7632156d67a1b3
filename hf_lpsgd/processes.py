"""Whether a run is the one that its launcher was asked for: its processes, and the engine that joins them."""

import os

# What torchrun and Accelerate set, then what MPI launchers set, as Accelerate reads them.
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


# What `accelerate launch` sets for an engine, and what Accelerate calls it.
_ENGINES = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DEEPSPEED"}


def check_processes(num_processes: int, in_a_loop: str = "cpu=True to the Accelerator") -> None:
    """Fail where a launcher started more processes than train together.

    Without a GPU, Accelerate joins them only if it is told to use the CPU. Otherwise each of them trains a whole model
    of its own, and all write the same output folder.

    Args:
        num_processes: how many processes train together, as `TrainingArguments.world_size` or
            `Accelerator.num_processes` tells.
        in_a_loop: what to pass, and to what, for the CPU to be used where there is no Trainer; told in the message.

    Raises:
        ValueError: says how many processes there are, and how to join them.
    """
    for name in _SIZES:
        size = os.environ.get(name, "")
        if size.isdecimal() and int(size) > num_processes:
            raise ValueError(
                f"The launcher started {int(size)} processes ({name}={size}), and only {num_processes} would train "
                "together, so that each trains a model of its own and writes the same files. Without a GPU, pass "
                f"--use_cpu True to a Trainer script, or {in_a_loop}. Otherwise start one process."
            )


def engines_asked_for() -> list[str]:
    """The engines that `accelerate launch` was asked for, by Accelerate's names."""
    return [engine for name, engine in _ENGINES.items() if os.environ.get(name, "").lower() == "true"]


def engine_left_out(distributed_type: str) -> str | None:
    """The engine that `accelerate launch` was asked for, if it is not `distributed_type`, the one in use.

    Accelerate leaves FSDP out where it is told to use the CPU, and says nothing.
    """
    return next((engine for engine in engines_asked_for() if engine != distributed_type), None)
