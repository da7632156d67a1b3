"""Warnings that reach the user."""

import sys
import warnings
from functools import cache

# Code between the user's line and ours. Accelerate silences the warnings that name torch.optim.lr_scheduler, which
# wraps each optimizer's step().
_BETWEEN = {"hf_lpsgd", "torch", "accelerate", "transformers", "deepspeed", "importlib"}


def warn_user(message: str) -> None:
    """Give a UserWarning that names the line of the user's program that led to it."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _BETWEEN:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


warn_once = cache(warn_user)
