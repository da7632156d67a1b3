"""Checks of hyperparameters and tensors, each failing with one line that says what is allowed."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch

# name: (smallest allowed value, exclusive upper bound or None, the allowed values in words)
_RANGES: dict[str, tuple[float, float | None, str]] = {
    "lr": (0.0, None, "a finite number of at least 0"),
    "momentum": (0.0, 1.0, "a number of at least 0 and less than 1"),
    "p_max": (2.0, None, "a finite number of at least 2 (2 is SGD, 1e6 is sign descent in effect)"),
    "p": (2.0, None, "a finite number of at least 2"),
    "eps": (0.0, None, "a finite number of at least 0"),
    "weight_decay": (0.0, None, "a finite number of at least 0"),
}


def check_number(name: str, value: Any, where: str = "") -> float:
    """Return `value` as a float, if it is one that the hyperparameter `name` can take.

    Args:
        name: `lr`, `momentum`, `p_max`, `p`, `eps` or `weight_decay`.
        value: anything; a number or a tensor of one element can be right.
        where: said after the name, as " in param group 1".

    Raises:
        ValueError: names the hyperparameter, the value and what is allowed.
    """
    low, high, allowed = _RANGES[name]
    number = value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
    is_number = isinstance(number, Real) and not isinstance(number, bool)
    try:
        number = float(number) if is_number else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number < low or (high is not None and number >= high):
        raise ValueError(f"Invalid {name}{where}: {value!r}. It must be {allowed}.")
    return number


def check_flag(name: str, value: Any, where: str = "", *, optional: bool = False) -> None:
    """Fail unless `value` is True or False, or None where `optional`.

    Raises:
        ValueError: names the option, the value and what is allowed.
    """
    if not (isinstance(value, bool) or (optional and value is None)):
        allowed = "True, False or None" if optional else "True or False"
        raise ValueError(f"Invalid {name}{where}: {value!r}. It must be {allowed}.")
