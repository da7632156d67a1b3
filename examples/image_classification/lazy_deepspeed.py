"""Keeps Accelerate from importing DeepSpeed in runs that do not use it."""

import sys

import accelerate.utils.other

__all__ = ["import_deepspeed_only_where_used"]


def import_deepspeed_only_where_used() -> None:
    """Where DeepSpeed is installed, Accelerate imports it to ask whether a model is one of its engines.

    A model can be one only if something has imported DeepSpeed before. The import takes time, and on a machine without
    a GPU it prints a warning.
    """
    if hasattr(accelerate.utils.other, "is_deepspeed_available"):
        accelerate.utils.other.is_deepspeed_available = lambda: "deepspeed" in sys.modules
