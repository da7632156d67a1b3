"""Settings of the whole process."""

import sys

import accelerate.utils.other
import datasets
import torch
from images.arguments import DataArguments


def settle(data_args: DataArguments, quiet: bool) -> None:
    """Change settings of the whole process: one thread for the digits; no progress bars where `quiet`."""
    import_deepspeed_only_where_used()
    if quiet or data_args.is_digits:
        datasets.disable_progress_bars()
    if data_args.is_digits:
        torch.set_num_threads(1)  # in layers this small, threads wait for each other longer than they compute


def import_deepspeed_only_where_used() -> None:
    """Where DeepSpeed is installed, Accelerate imports it to ask whether a model is one of its engines.

    A model can be one only if something has imported DeepSpeed before. The import takes time, and on a machine without
    a GPU it prints a warning.
    """
    if hasattr(accelerate.utils.other, "is_deepspeed_available"):
        accelerate.utils.other.is_deepspeed_available = lambda: "deepspeed" in sys.modules
