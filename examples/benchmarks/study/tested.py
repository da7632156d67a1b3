"""Tables and figures of a study whose contenders were tested: at the best rate, at the first one, at AdamW's best."""

from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from .words import spread, title_of

__all__ = ["draw_tested", "tables_of_tested"]

Cells = list[dict[str, Any]]

# Steps are counted until the accuracy on the examples held out is AdamW's at the end, times this.
SHARE = 0.95


class Tested:
    """The cells of a study with a test, and what is asked of them."""

    __test__ = False  # pytest looks for classes of this name

    def __init__(self, cells: Cells, first_rates: dict[str, float]) -> None:
        """first_rates: by title of the contender, the rate that a user would try first."""
        self.first_rates = first_rates
        self.tests: dict[tuple[str, str], dict[float, Cells]] = defaultdict(lambda: defaultdict(list))
        chosen: dict[tuple[str, str], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
        for cell in cells:
            key = (cell["task"], title_of(cell))
            if cell["split"] == "test":
                self.tests[key][cell["rate"]].append(cell)
            else:
                chosen[key][cell["rate"]].append(cell["accuracy"])
        self.validation = {key: {rate: mean(rates[rate]) for rate in sorted(rates)} for key, rates in chosen.items()}
        self.tasks = list(dict.fromkeys(task for task, _ in self.tests))
        self.titles = list(dict.fromkeys(title for _, title in self.tests))
        self._steps: dict[str, float] = defaultdict(float)  # of a whole training: a run that diverged has fewer
        for cell in cells:
            if cell.get("curve"):
                self._steps[cell["task"]] = max(self._steps[cell["task"]], cell["curve"][-1]["step"])

    def best_rate(self, task: str, title: str) -> float:
        """By the examples held out."""
        rates = self.validation[task, title]
        return max(rates, key=lambda rate: rates[rate])

    def rate(self, task: str, title: str, which: str) -> float:
        """The rate that is `best`, `first`, or the best of `AdamW`."""
        if which == "first":
            return self.first_rates[title]
        return self.best_rate(task, title if which == "best" else which)

    def accuracies(self, task: str, title: str, which: str) -> list[float]:
        if (task, title) not in self.tests:
            return []
        return [cell["accuracy"] for cell in self.tests[task, title][self.rate(task, title, which)]]

    def steps_to(self, task: str, title: str) -> float | None:
        """Mean number of steps, as a share of the training, at the best rate; None if a run never got there."""
        wanted = SHARE * mean(cell["curve"][-1]["accuracy"] for cell in self._best(task, "AdamW"))
        found = []
        for cell in self._best(task, title):
            reached = [point["step"] for point in cell["curve"] if point["accuracy"] >= wanted]
            if not reached:
                return None
            found.append(reached[0] / self._steps[task])
        return mean(found)

    def _best(self, task: str, title: str) -> Cells:
        return self.tests[task, title][self.best_rate(task, title)]

    def curve(self, task: str, title: str, name: str) -> tuple[list[float], list[float], list[float]]:
        """Progress, mean and standard deviation of an entry of the curves at the best rate."""
        cells = self._best(task, title)
        shortest = min((cell["curve"] for cell in cells), key=len)  # a run that diverged was cut off
        progress = [point["step"] / self._steps[task] for point in shortest]
        values = [[cell["curve"][place].get(name) for cell in cells] for place in range(len(progress))]
        known = [place for place, of_cells in enumerate(values) if None not in of_cells]
        spreads = [stdev(values[place]) if len(cells) > 1 else 0.0 for place in known]
        return [progress[place] for place in known], [mean(values[place]) for place in known], spreads


def _table(tested: Tested, which: str, with_rate: bool) -> list[str]:
    lines = ["| optimizer | " + " | ".join(tested.tasks) + " |", "| --- |" + " ---: |" * len(tested.tasks)]
    for title in tested.titles:
        entries = []
        for task in tested.tasks:
            values = tested.accuracies(task, title, which)
            rate = f" ({tested.rate(task, title, which):g})" if values and with_rate else ""
            entries.append(spread(values) + rate if values else "")
        if any(entries):
            lines.append(f"| {title} | " + " | ".join(entries) + " |")
    return lines


def tables_of_tested(tested: Tested) -> list[str]:
    lines = ["## At the best learning rate", "", "Chosen on examples held out, accuracy on the test data:", ""]
    lines += _table(tested, "best", with_rate=True)
    first = ", ".join(f"{title}: {tested.first_rates[title]:g}" for title in tested.titles)
    lines += ["", "## At the rate that a user would try first", "", f"The rates: {first}.", ""]
    lines += _table(tested, "first", with_rate=False)
    lines += ["", "## At AdamW's best rate", "", "For each task, the rate that was best for AdamW:", ""]
    lines += _table(tested, "AdamW", with_rate=True)
    lines += ["", f"## Steps to {SHARE:.0%} of AdamW's accuracy", ""]
    lines += [
        "As a share of the training, at the best rate, on examples held out; a dash where a run did not get there. "
        "The accuracy was looked at 20 times per training, or 10 times by the Trainer.",
        "",
        "| optimizer | " + " | ".join(tested.tasks) + " |",
        "| --- |" + " ---: |" * len(tested.tasks),
    ]
    for title in tested.titles:
        shares = [tested.steps_to(task, title) if (task, title) in tested.tests else None for task in tested.tasks]
        lines.append(f"| {title} | " + " | ".join("-" if s is None else f"{s:.2f}" for s in shares) + " |")
    return lines


def draw_tested(tested: Tested, path: Path) -> None:
    """A row per task: accuracy over the rate, the curves of a training, and the steps to a given accuracy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(17, 2.7 * len(tested.tasks)), dpi=70, layout="constrained")
    axes = figure.subplots(len(tested.tasks), 5, squeeze=False)
    for (over_rate, accuracy, loss, schedule, steps), task in zip(axes, tested.tasks, strict=True):
        for color, title in enumerate(tested.titles):
            if (task, title) not in tested.tests:
                continue
            rates = tested.validation[task, title]
            style = {"color": f"C{color}", "linewidth": 1, "label": title}
            over_rate.plot(list(rates), list(rates.values()), "o-", markersize=3, **style)
            for axis, name in ((accuracy, "accuracy"), (loss, "loss")):
                progress, middle, deviation = tested.curve(task, title, name)
                low = [m - d for m, d in zip(middle, deviation, strict=True)]
                high = [m + d for m, d in zip(middle, deviation, strict=True)]
                axis.plot(progress, middle, **style)
                axis.fill_between(progress, low, high, color=f"C{color}", alpha=0.15)
            share = tested.steps_to(task, title)
            steps.barh(-color, 0 if share is None else share, color=f"C{color}")
            if share is None:
                steps.text(0.02, -color, "not reached", va="center", fontsize=6)
            progress, orders, _ = tested.curve(task, title, "p")
            if orders:
                schedule.plot(progress, orders, **style)
        progress, lrs, _ = tested.curve(task, tested.titles[0], "lr")
        schedule.plot(progress, [20 * lr / max(lrs) for lr in lrs], "k:", linewidth=1, label="learning rate, scaled")
        over_rate.set(xscale="log", ylabel=task)
        steps.set(xlim=(0, 1), yticks=[])
        for axis in (over_rate, accuracy, loss, schedule, steps):
            axis.grid(alpha=0.3)
            axis.tick_params(labelsize=7)
    headings = (
        "accuracy held out, over the rate",
        "accuracy held out",
        "training loss",
        "p, and the learning rate",
        f"share of the training to {SHARE:.0%} of AdamW",
    )
    for axis, heading in zip(axes[0], headings, strict=True):
        axis.set_title(heading, fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("progress", fontsize=8)
    axes[-1][0].set_xlabel("learning rate", fontsize=8)
    axes[-1][4].set_xlabel("share of the training", fontsize=8)
    axes[0][1].legend(fontsize=6)
    axes[0][3].legend(fontsize=6)
    figure.savefig(path)
