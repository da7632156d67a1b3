"""How cells and figures of the study are called in tables."""

from statistics import mean, stdev
from typing import Any

from .tasks import TASKS

__all__ = ["best_rate", "family_of", "known_as", "rates_of", "spread", "title_of"]


def title_of(cell: dict[str, Any]) -> str:
    """The contender of a cell in words, as `LPSGDM p_max=20, grad_rms=auto`."""
    options = dict(cell["options"])
    p_max = options.pop("p_max", None)
    head = cell["optimizer"] + (f" p_max={p_max:g}" if p_max is not None else "")
    return ", ".join([head, *(f"{name}={value}" for name, value in options.items())])


def rates_of(contender: dict[str, Any]) -> dict[float, float]:
    """The learning rates of a contender of a study, each with the one that tables show.

    They differ by the contender's `rate_factor`: to move by 1.5 times the library's half is to train at 1.5 times the
    rate.
    """
    factor = contender.get("rate_factor", 1)
    return {float(f"{factor * float(rate):.6g}"): float(rate) for rate in contender["rates"]}


def known_as(cell: dict[str, Any], study: dict[str, Any]) -> tuple[str, float]:
    """The title and the rate that tables show of a cell."""
    title, rate = title_of(cell), cell["rate"]
    same = [known for known in study.get("contenders", ()) if title_of({"options": {}, **known}) == title]
    for contender in same:
        if rate in rates_of(contender):
            return contender.get("title", title), rates_of(contender)[rate]
    return next((contender["title"] for contender in same if "title" in contender), title), rate


def family_of(title: str) -> str:
    """A contender without its p_max: the curves of one family are to lie together."""
    return ", ".join(part for part in title.replace(" p_max", ", p_max").split(", ") if not part.startswith("p_max"))


def best_rate(task: str, of_rates: dict[float, list[float]]) -> float:
    """The rate of the best mean over the seeds, by the metric of the task."""
    return TASKS[task].best({rate: mean(values) for rate, values in of_rates.items()})


def spread(values: list[float]) -> str:
    """The mean and the standard deviation."""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")
