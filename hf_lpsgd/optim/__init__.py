"""The optimizers; they need torch and nothing else."""

from .lpsgd import LPSGD
from .lpsgdm import LPSGDM

__all__ = ["LPSGD", "LPSGDM"]
