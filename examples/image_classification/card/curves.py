"""Training curves as a picture: loss, evaluation accuracy, learning rate and p over the optimizer steps."""

import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

_INK, _GREY = "#222222", "#8a8a8a"
# Each panel: its title, and the logged quantities it shows with their legend and colour.
_PANELS: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    ("loss", (("loss", "training", "#3b6fb6"), ("eval_loss", "evaluation", "#d9822b"))),
    ("evaluation accuracy", (("eval_accuracy", "evaluation accuracy", "#2f8f5b"),)),
    ("learning rate", (("learning_rate", "learning rate", "#8a4fa3"),)),
    ("p of the lp norm", (("p", "p", "#c0392b"),)),
)


def _curve(log_history: Iterable[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps, ascending, and finite values of `key`; of several at one step the last."""
    points: dict[float, float] = {}
    for entry in log_history:
        value, step = entry.get(key), entry.get("step")
        if isinstance(value, (int, float)) and isinstance(step, (int, float)) and math.isfinite(value):
            points[step] = value
    steps = sorted(points)
    return steps, [points[step] for step in steps]


def plot_history(
    log_history: Iterable[Mapping[str, Any]], path: str | os.PathLike[str], title: str | None = None
) -> None:
    """Draw the curves of a Trainer run into an image file.

    A quantity that was never logged gets no panel. No global state of matplotlib is read or changed, so it may be
    called from any thread and beside other plots.

    Args:
        log_history: `trainer.state.log_history`, or the list of that name in a `trainer_state.json`.
        path: file to write; the format follows the suffix (`.png`, `.svg`, `.pdf`). Its folder must exist.
        title: heading of the figure. Default: none.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If none of the quantities was logged.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError('Plotting needs matplotlib: pip install "hf-lpsgd[plots]"') from error

    history = list(log_history)
    panels = []
    for heading, quantities in _PANELS:
        curves = [(label, colour, *_curve(history, key)) for key, label, colour in quantities]
        curves = [curve for curve in curves if curve[2]]
        if curves:
            panels.append((heading, curves))
    if not panels:
        names = ", ".join(key for _, quantities in _PANELS for key, _, _ in quantities)
        raise ValueError(f"Nothing to plot: no entry of log_history has a step and any of {names}")

    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(5.2 * columns, 3.0 * rows + (0.4 if title else 0.0)), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=13, color=_INK)
    last_step = max(steps[-1] for _, curves in panels for _, _, steps, _ in curves)
    for number, (heading, curves) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        for label, colour, steps, values in curves:
            few = len(steps) <= 40
            name = f"{label}, at last {values[-1]:.3g}"
            axes.plot(
                steps, values, color=colour, linewidth=1.6, marker="o" if few else None, markersize=3, label=name
            )
            if len(curves) > 1:  # side by side the two ends would often overlap
                continue
            axes.annotate(
                f"{values[-1]:.3g}",
                (steps[-1], values[-1]),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=colour,
                annotation_clip=False,
            )
        axes.set_title(heading, loc="left", fontsize=10, color=_INK)
        axes.set_xlim(0, last_step * 1.12 or 1)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.tick_params(labelsize=8, color=_GREY, labelcolor=_INK)
        axes.grid(True, color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(_GREY)
        if number + columns >= len(panels):
            axes.set_xlabel("step", fontsize=9, color=_INK)
        if len(curves) > 1:
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)
