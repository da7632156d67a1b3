"""Figures of a study, one for each question."""

import math
from pathlib import Path
from statistics import mean
from typing import Any

from .tasks import TASKS
from .tested import Tested

__all__ = ["draw_curves", "draw_rates"]

COLUMNS = 3


def draw_rates(found: dict[str, dict[str, dict[float, list[float]]]], path: Path) -> None:
    """The metric over the learning rate: a panel per task, a line per contender."""
    titles = list(dict.fromkeys(title for contenders in found.values() for title in contenders))
    if len(titles) > 20:
        return  # a search, which no figure shows
    figure, panels = _panels(len(found))
    for axis, (task, contenders) in zip(panels, found.items(), strict=True):
        for title, of_rates in contenders.items():
            rates = sorted(rate for rate in of_rates if math.isfinite(mean(of_rates[rate])))
            values = [mean(of_rates[rate]) for rate in rates]
            axis.plot(rates, values, "o", markersize=3, **_style(titles, title))
        axis.set(xscale="log", xlabel="learning rate", ylabel=TASKS[task].measure, title=task)
        _zoom(axis, task, [mean(values) for of_rates in contenders.values() for values in of_rates.values()])
    _save(figure, panels, path)


def draw_curves(tested: Tested, titles: list[str], path: Path) -> None:
    """The metric and the training loss over the training, at the best rate of each title: two panels per task.

    Of one task the legend tells the rates.
    """
    shown = {task: found for task in tested.tasks if (found := tested.trainings(task, titles))}
    if not shown:
        return
    figure, panels = _panels(2 * len(shown), columns=2)
    for place, (task, found) in enumerate(shown.items()):
        for axis, name in zip(panels[2 * place :], (TASKS[task].metric, "loss"), strict=False):
            for title, cells in found.items():
                steps, middle, deviation = tested.curve(cells, name)
                style = _style(tested.titles, title)
                if len(shown) == 1:
                    style["label"] += f" ({cells[0]['rate']:g})"
                axis.plot(steps, middle, **style)
                low = [m - d for m, d in zip(middle, deviation, strict=True)]
                high = [m + d for m, d in zip(middle, deviation, strict=True)]
                axis.fill_between(steps, low, high, color=style["color"], alpha=0.15)
            axis.set(xlabel="step", ylabel=_words(name), title=task if len(shown) > 1 else "")
    _save(figure, panels, path)


def _words(name: str) -> str:
    return {"loss": "training loss", "eval_loss": "evaluation loss"}.get(name, name)


def _zoom(axis: Any, task: str, values: list[float]) -> None:
    """Leave what is far worse than the rest out of a panel of losses, where it would hide the differences."""
    finite = sorted(value for value in values if math.isfinite(value))
    if TASKS[task].lower_is_better and finite:
        middle = finite[len(finite) // 2]
        axis.set_ylim(top=min(finite[-1], middle + 3 * (middle - finite[0])) + 0.02)


def _style(titles: list[str], title: str) -> dict[str, Any]:
    place = titles.index(title)
    return {"color": f"C{place % 10}", "linestyle": ("-", "--", ":")[place // 10 % 3], "linewidth": 1, "label": title}


def _panels(number: int, columns: int = COLUMNS) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    columns = min(columns, number)
    rows = -(-number // columns)
    figure = Figure(figsize=(max(5.0, 3.6 * columns), 2.7 * rows), dpi=80, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[number:]:
        axis.remove()
    return figure, axes[:number]


def _save(figure: Any, panels: list[Any], path: Path) -> None:
    """Save it with one legend below all panels, which takes nothing of their width."""
    entries: dict[str, Any] = {}
    for axis in panels:
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=7)
        axis.title.set_fontsize(9)
        axis.xaxis.label.set_fontsize(8)
        axis.yaxis.label.set_fontsize(8)
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    longest = max(map(len, entries))
    columns = max(1, int(figure.get_figwidth() * 13 / (longest + 8)))  # some 13 characters an inch
    figure.set_figheight(figure.get_figheight() + 0.18 * -(-len(entries) // columns))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, fontsize=7)
    figure.savefig(path)
