"""`rounding="stochastic"`: the random numbers of a step, which depend on two plain numbers in the param groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..notices import warn_user
from .kernels.rounding import ROUNDED, StochasticRounding

# In a group: the number of its updates so far.
STEPS = "rounded_steps"


def takes_part(group: dict[str, Any]) -> bool:
    """Whether the group is rounded stochastically."""
    return group.get("rounding") == "stochastic"


def random_numbers(
    groups: Sequence[dict[str, Any]], group: dict[str, Any], indices: Sequence[int]
) -> StochasticRounding:
    """Those of the group's next update.

    Args:
        groups: all groups of the optimizer.
        group: one of them.
        indices: places in it of the parameters that are updated.

    Raises:
        ValueError: the step is compiled or captured, and would draw the same numbers again and again.
    """
    if torch.compiler.is_compiling() or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
        raise ValueError(
            "rounding='stochastic' needs new random numbers at each step, which a step that is compiled by "
            "torch.compile or captured in a CUDA graph does not draw. Make the step outside of it, or use "
            "rounding='nearest'."
        )
    before = 0
    for other in groups:
        if other is group:
            break
        before += len(other["params"])
    return StochasticRounding(group["rounding_seed"], group.get(STEPS, 0), [before + index for index in indices])


def begin(group: dict[str, Any]) -> None:
    """Let the group hold the number of its updates from the start, so that every kind of checkpoint finds it."""
    group.setdefault(STEPS, 0)


def count(group: dict[str, Any]) -> None:
    """Count an update of the group."""
    group[STEPS] = group.get(STEPS, 0) + 1


def notice_no_effect(groups: Sequence[dict[str, Any]]) -> None:
    """Warn if none of the groups that are to be rounded stochastically holds anything that is rounded."""
    if not any(
        group.get("momentum_dtype") == "bfloat16" or any(param.dtype in ROUNDED for param in group["params"])
        for group in groups
        if takes_part(group)
    ):
        warn_user(
            "rounding='stochastic' has no effect here: neither parameters nor momentum are bfloat16 or float16. "
            "Automatic mixed precision (--bf16) and DeepSpeed keep the weights in float32. To train in bfloat16, "
            "load the model with dtype=torch.bfloat16."
        )
