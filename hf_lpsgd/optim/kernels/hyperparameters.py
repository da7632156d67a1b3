"""The numbers of one step: what the options of an optimizer mean to the implementations."""

import inspect
import math
from typing import NamedTuple

from torch import Tensor

from .rounding import Key
from .tensors import SumOfSquares

# With a reference size r, an element moves by MOST_MOVED * lr * min(|m| / (SATURATION * r), 1)^(1/(p-1)).
# Most elements of a gradient are far below its root mean square: with a tenth of it, one learning rate serves every p.
SATURATION = 0.1
# AdamW moves most elements by a part of its learning rate: with a half, its learning rates serve here too.
MOST_MOVED = 0.5
# Of a momentum in float8 before the size of the gradient is known: so large that nothing of it is left.
_UNKNOWN = 2.0**100


class Hyperparameters(NamedTuple):
    """The numbers of one step, as each implementation reads them, by name."""

    lr: float | Tensor  # of the weight decay
    grad_weight: float = 1.0  # of the gradient in the moving average, 1 - momentum; unused without buffers
    rho: float = 0.0  # exponent of the rescaling, in [0, 1)
    eps: float = 0.0  # added to the magnitude before the power
    weight_decay: float = 0.0
    sign: float = 1.0  # -1 to ascend
    lr_scale: float = 1.0  # the learning rate of the update over that of the decay
    bound: float = math.inf  # magnitude at which the gradient, or its average, is cut off for the update
    momentum_unit: float = 1.0  # of a momentum in float8, a power of two
    squares: SumOfSquares | None = None  # gathers those of the gradient, or of its average, before the cut
    rounding: Key | None = None  # of the step; None rounds to nearest, which a momentum in float8 never is


# What the compiled kernels take beside the learning rate. cpu_kernel.cpp has them in this order.
NUMBERS = tuple(name for name in Hyperparameters._fields if name not in ("lr", "squares", "rounding"))


def hyperparameters(
    *,
    lr: float | Tensor,
    p: float,
    eps: float,
    weight_decay: float,
    momentum: float = 0.0,
    maximize: bool = False,
    grad_rms: float | None = None,
    momentum_unit: float = 1.0,
    squares: SumOfSquares | None = None,
    rounding: Key | None = None,
) -> Hyperparameters:
    """Turn the options of a step into the numbers that the implementations read."""
    rho, sign, lr_scale, bound = float((p - 2.0) / (p - 1.0)), -1.0 if maximize else 1.0, 1.0, math.inf
    if grad_rms is not None:
        bound = SATURATION * grad_rms
        # m/bound / (|m|/bound)^rho is m / |m|^rho times bound^(rho - 1).
        lr_scale, eps = MOST_MOVED * bound ** (rho - 1.0), eps * grad_rms
    numbers = (lr, 1 - momentum, rho, eps, weight_decay, sign, lr_scale, bound, momentum_unit or _UNKNOWN)
    return Hyperparameters(*numbers, squares, rounding)


# The options that a step depends on, by the names that they have in a param group.
OF_STEP = tuple(inspect.signature(hyperparameters).parameters)
