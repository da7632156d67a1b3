"""The integration with transformers' Trainer: registration, `optim_args`, and the callbacks.

`CurvatureCallback` is found here too; asking for it imports transformers.
"""

from typing import Any

from ..optim import OPTIMIZERS
from .optim_args import OptimArgs, validate_optim_args
from .registration import register

__all__ = ["OPTIMIZERS", "OptimArgs", "register", "validate_optim_args"]


def __getattr__(name: str) -> Any:
    if name == "CurvatureCallback":
        from .curvature import CurvatureCallback

        return CurvatureCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
