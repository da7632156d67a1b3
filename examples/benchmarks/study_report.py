"""Make the tables and the figure of a study from its cells.

    python examples/benchmarks/study_report.py examples/benchmarks/results/grad_rms

Writes results.md and results.png beside cells.jsonl. More folders than one are told as one study.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from run_study import read_cells
from study.tasks import TASKS

# Accuracies over seeds, by task, contender and rate.
Accuracies = dict[str, dict[str, dict[float, list[float]]]]


def title_of(cell: dict[str, Any]) -> str:
    """The contender of a cell in words, as `LPSGDM p_max=20, grad_rms=auto`."""
    options = dict(cell["options"])
    p_max = options.pop("p_max", None)
    head = cell["optimizer"] + (f" p_max={p_max:g}" if p_max is not None else "")
    return ", ".join([head, *(f"{name}={value}" for name, value in options.items())])


def family_of(title: str) -> str:
    """A contender without its p_max: the curves of one family are to lie together."""
    return ", ".join(part for part in title.replace(" p_max", ", p_max").split(", ") if not part.startswith("p_max"))


def gather(cells: Iterable[dict[str, Any]]) -> Accuracies:
    found: Accuracies = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for cell in cells:
        found[cell["task"]][title_of(cell)][cell["rate"]].append(cell["accuracy"])
    return found


def of_whole_seeds(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells of the seeds with which all of a task was run: one that was cut off would favour some contenders."""
    number = Counter((cell["task"], cell["seed"]) for cell in cells)
    most = {task: max(count for (other, _), count in number.items() if other == task) for task, _ in number}
    return [cell for cell in cells if number[cell["task"], cell["seed"]] == most[cell["task"]]]


def spread(values: list[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def best_rate(of_rates: dict[float, list[float]]) -> float:
    return max(of_rates, key=lambda rate: mean(of_rates[rate]))


def common_rate(family: list[dict[float, list[float]]]) -> tuple[float, float]:
    """The one rate at which the member that loses most to its own best rate loses least, and that loss."""
    rates = set.intersection(*(set(member) for member in family))
    losses = {
        rate: max(mean(member[best_rate(member)]) - mean(member[rate]) for member in family) for rate in sorted(rates)
    }
    best = min(losses, key=lambda rate: losses[rate])
    return best, losses[best]


def table_of(task: dict[str, dict[float, list[float]]]) -> list[str]:
    rates = sorted({rate for of_rates in task.values() for rate in of_rates})
    lines = ["| optimizer | best rate | accuracy there | " + " | ".join(f"{rate:g}" for rate in rates) + " |"]
    lines.append("| --- |" + " ---: |" * (len(rates) + 2))
    for title, of_rates in task.items():
        best = best_rate(of_rates)
        cells = [f"{mean(of_rates[rate]):.3f}" if rate in of_rates else "" for rate in rates]
        lines.append(f"| {title} | {best:g} | {spread(of_rates[best])} | " + " | ".join(cells) + " |")
    return lines


def carry_over(found: Accuracies) -> list[str]:
    """How much one rate for all p_max loses to the rate tuned for each."""
    families: dict[str, dict[str, list[dict[float, list[float]]]]] = defaultdict(lambda: defaultdict(list))
    for task, contenders in found.items():
        for title, of_rates in contenders.items():
            if "p_max" in title:
                families[family_of(title)][task].append(of_rates)
    lines = ["| LPSGDM with | " + " | ".join(found) + " |", "| --- |" + " ---: |" * len(found)]
    for family, of_task in families.items():
        cells = []
        for task in found:
            if task not in of_task:
                cells.append("")
                continue
            rate, loss = common_rate(of_task[task])
            cells.append(f"{100 * loss:.1f} at {rate:g}")
        name = family.removeprefix("LPSGDM").removeprefix(", ") or "the paper's step"
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def draw(found: Accuracies, path: Path) -> None:
    """Accuracy over the learning rate: a row per task, the paper's step on the left and grad_rms=auto on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sides = {"LPSGDM": "the paper's step", "LPSGDM, grad_rms=auto": "grad_rms=auto"}
    figure, axes = pyplot.subplots(
        len(found), 2, figsize=(9, 2.6 * len(found)), squeeze=False, sharey="row", layout="constrained"
    )
    for row, (task, contenders) in zip(axes, found.items(), strict=True):
        for axis, (family, side) in zip(row, sides.items(), strict=True):
            for title, of_rates in contenders.items():
                is_ours = "p_max" in title
                if is_ours and family_of(title) != family:
                    continue
                rates = sorted(of_rates)
                label = title.split(",")[0].removeprefix("LPSGDM ")
                style = "o-" if is_ours else "--"
                axis.plot(
                    rates, [mean(of_rates[rate]) for rate in rates], style, label=label, markersize=3, linewidth=1
                )
            axis.set_xscale("log")
            axis.set_title(f"{task}: {side}", fontsize=9)
            axis.tick_params(labelsize=7)
            axis.grid(alpha=0.3)
        row[0].set_ylabel("accuracy", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("learning rate", fontsize=8)
    axes[0][1].legend(fontsize=7)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders with a cells.jsonl; the first gets the files")
    args = parser.parse_args()
    cells = [cell for folder in args.folders for cell in read_cells(folder / "cells.jsonl")]
    if not cells:
        parser.error(f"{args.folders[0]} holds no finished cells: run run_study.py first")
    cells = of_whole_seeds(cells)
    order = list(TASKS)
    cells.sort(key=lambda cell: order.index(cell["task"]))
    found = gather(cells)
    with open(args.folders[0] / "cells.jsonl", encoding="utf-8") as file:
        run: dict[str, Any] = next((entry["run"] for line in file if "run" in (entry := json.loads(line))), {})
    lines = [
        "# Results",
        "",
        f"Made by `python examples/benchmarks/study_report.py` from {len(cells)} runs of `{run.get('command')}`, at "
        f"commit {run.get('commit')}, on {run.get('device')}. Accuracy on data held out, mean and standard deviation "
        "over the seeds.",
        "",
        "## One rate for every p_max",
        "",
        "The points of accuracy that one rate for all p_max loses to the rate tuned for each, at the p_max that loses "
        "most, and that rate:",
        "",
        *carry_over(found),
    ]
    for task, contenders in found.items():
        seeds = len({cell["seed"] for cell in cells if cell["task"] == task})
        lines += ["", f"## {task}", "", f"{TASKS[task].description}. Seeds: {seeds}.", "", *table_of(contenders)]
    (args.folders[0] / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw(found, args.folders[0] / "results.png")
    print(args.folders[0] / "results.md")


if __name__ == "__main__":
    main()
