"""How cells and figures of the study are called in tables."""

from collections.abc import Iterator
from statistics import mean, stdev
from typing import Any

from .tasks import TASKS

__all__ = ["best_rate", "family_of", "known_as", "spread", "title_of"]


def title_of(cell: dict[str, Any]) -> str:
    """The contender of a cell in words, as `LPSGDM p_max=20, grad_rms=auto`."""
    options = dict(cell["options"])
    p_max = options.pop("p_max", None)
    head = cell["optimizer"] + (f" p_max={p_max:g}" if p_max is not None else "")
    return ", ".join([head, *(f"{name}={value}" for name, value in options.items())])


def known_as(study: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The contenders that the study gives a title: the words of `title_of`, and that title."""
    for contender in study.get("contenders", ()):
        if "title" in contender:
            yield title_of({"options": {}, **contender}), contender["title"]


def family_of(title: str) -> str:
    """A contender without its p_max: the curves of one family are to lie together."""
    return ", ".join(part for part in title.replace(" p_max", ", p_max").split(", ") if not part.startswith("p_max"))


def best_rate(task: str, of_rates: dict[float, list[float]]) -> float:
    """The rate of the best mean over the seeds, by the metric of the task."""
    return TASKS[task].best({rate: mean(values) for rate, values in of_rates.items()})


def spread(values: list[float]) -> str:
    """The mean and the standard deviation."""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")
