"""The optimizers; they need torch and nothing else."""

from . import layerwise as layerwise
from .lpsgd import LPSGD, LPSGDM
from .registry import OPTIMIZERS, OptimizerRecord

__all__ = ["LPSGD", "LPSGDM", "OPTIMIZERS", "OptimizerRecord"]
