"""The integration with transformers' Trainer: registration, `optim_args` and the callback."""

from ..optim import OPTIMIZERS
from .optim_args import OptimArgs, validate_optim_args
from .registration import register

__all__ = ["OPTIMIZERS", "OptimArgs", "register", "validate_optim_args"]
