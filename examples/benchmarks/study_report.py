"""Make the tables and the figures of a study from its cells.

    python examples/benchmarks/study_report.py examples/benchmarks/results/grad_rms

Writes results.md beside cells.jsonl, and one figure for each question: rates.png, the metric over the learning rate,
or p_max.png where p_max was varied; of a study with a test also curves.png, the metric over the training, of all
contenders or of those that the study names as `curves`. Several folders are reported as one study. Where a note.md
lies there, as for cells of another version of hf_lpsgd, its text comes first.
"""

import argparse
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from run_study import contenders_of, read_cells, read_entries
from study.figures import draw_curves, draw_rates
from study.tasks import TASKS
from study.tested import Tested, tables_of_tested
from study.words import best_rate, family_of, known_as, spread, title_of

# The metric of a task over seeds, by task, contender and rate.
Values = dict[str, dict[str, dict[float, list[float]]]]


def gather(cells: Iterable[dict[str, Any]]) -> Values:
    found: Values = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for cell in cells:
        found[cell["task"]][cell["title"]][cell["rate"]].append(TASKS[cell["task"]].value(cell))
    return found


def of_whole_seeds(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells of the seeds with which most of a task was run: one that was cut off would favour some contenders."""
    number = Counter((cell["task"], cell["seed"]) for cell in cells)
    most = {task: max(count for (other, _), count in number.items() if other == task) for task, _ in number}
    return [cell for cell in cells if number[cell["task"], cell["seed"]] == most[cell["task"]]]


def common_rate(task: str, family: list[dict[float, list[float]]]) -> tuple[float, float] | None:
    """The one rate at which the member that loses most to its own best rate loses least, and that loss.

    None where no rate was tried with all members.
    """
    rates = set.intersection(*(set(member) for member in family))
    if not rates:
        return None
    losses = {
        rate: max(abs(mean(member[best_rate(task, member)]) - mean(member[rate])) for member in family)
        for rate in sorted(rates)
    }
    best = min(losses, key=lambda rate: losses[rate])
    return best, losses[best]


def table_of(task: str, contenders: dict[str, dict[float, list[float]]]) -> list[str]:
    """Each contender over the rates. Its mean over AdamW's rates tells how it does for a user who does not tune."""
    rates = sorted({rate for of_rates in contenders.values() for rate in of_rates})
    of_adamw = set(contenders.get("AdamW", ()))
    heads = ["optimizer", "best rate", f"{TASKS[task].measure} there", "mean over AdamW's rates"]
    lines = ["| " + " | ".join([*heads, *(f"{rate:g}" for rate in rates)]) + " |"]
    lines.append("| --- |" + " ---: |" * (len(rates) + 3))
    for title, of_rates in contenders.items():
        best = best_rate(task, of_rates)
        cells = [f"{mean(of_rates[rate]):.3f}" if rate in of_rates else "" for rate in rates]
        has_all = of_adamw and of_adamw <= of_rates.keys()
        over = f"{mean(mean(of_rates[rate]) for rate in of_adamw):.3f}" if has_all else ""
        lines.append(f"| {title} | {best:g} | {spread(of_rates[best])} | {over} | " + " | ".join(cells) + " |")
    return lines


def carry_over(found: Values) -> list[str]:
    """How much one rate for all p_max loses to the rate tuned for each."""
    families: dict[str, dict[str, list[dict[float, list[float]]]]] = defaultdict(lambda: defaultdict(list))
    for task, contenders in found.items():
        for title, of_rates in contenders.items():
            if title.startswith("LPSGD"):
                families[family_of(title)][task].append(of_rates)
    families = {family: members for family, members in families.items() if any(len(of) > 1 for of in members.values())}
    lines = ["| LPSGDM with | " + " | ".join(found) + " |", "| --- |" + " ---: |" * len(found)]
    for family, of_task in families.items():
        cells = []
        for task in found:
            if task not in of_task:
                cells.append("")
                continue
            found_rate = common_rate(task, of_task[task])
            cells.append(
                "no rate in common" if found_rate is None else f"{100 * found_rate[1]:.1f} at {found_rate[0]:g}"
            )
        lines.append(f"| {way_of(family)} | " + " | ".join(cells) + " |")
    return lines


def draw_p_max(found: Values, path: Path) -> None:
    """The metric over the learning rate: a row per task, a column per way of LPSGDM, with a curve for each p_max."""
    from matplotlib.figure import Figure

    families = list(dict.fromkeys(family_of(title) for task in found.values() for title in task if "p_max" in title))
    columns = sorted(families)
    if len(columns) > 6:
        return  # a search, which no figure shows
    figure = Figure(figsize=(4.5 * len(columns), 2.6 * len(found)), dpi=80, layout="constrained")
    axes = figure.subplots(len(found), len(columns), squeeze=False, sharey="row")
    for row, (task, contenders) in zip(axes, found.items(), strict=True):
        for axis, family in zip(row, columns, strict=True):
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
            axis.set_title(f"{task}: {way_of(family)}", fontsize=9)
            axis.tick_params(labelsize=7)
            axis.grid(alpha=0.3)
        row[0].set_ylabel(TASKS[task].measure, fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("learning rate", fontsize=8)
    axes[0][-1].legend(fontsize=7)
    figure.savefig(path)


def way_of(family: str) -> str:
    """A family of LPSGDM in words."""
    return family.removeprefix("LPSGDM").removeprefix(", ") or "the paper's step"


def best_of_each(found: Values) -> list[str]:
    """Each contender at its best rate on each task."""
    titles = list(dict.fromkeys(title for contenders in found.values() for title in contenders))
    lines = ["| optimizer | " + " | ".join(found) + " |", "| --- |" + " ---: |" * len(found)]
    for title in titles:
        entries = []
        for task, contenders in found.items():
            of_rates = contenders.get(title, {})
            rate = best_rate(task, of_rates) if of_rates else 0.0
            entries.append(f"{spread(of_rates[rate])} ({rate:g})" if of_rates else "")
        lines.append(f"| {title} | " + " | ".join(entries) + " |")
    return lines


def beside_adamw(found: Values) -> list[str]:
    """How much each contender is ahead of AdamW at the same rate: below AdamW's best rate, at it and above it.

    Nothing for a study without AdamW, or one whose tasks have several metrics.
    """
    measures = {TASKS[task].measure for task in found}
    if len(measures) > 1 or not all("AdamW" in contenders for contenders in found.values()):
        return []
    ahead: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for task, contenders in found.items():
        of_adamw = contenders["AdamW"]
        best = best_rate(task, of_adamw)
        for title, of_rates in contenders.items():
            for rate in of_adamw:
                side = (rate > best) - (rate < best)
                tried = rate in of_rates
                ahead[title][side].append(mean(of_rates[rate]) - mean(of_adamw[rate]) if tried else math.nan)
    (measure,) = measures
    is_loss = TASKS[next(iter(found))].lower_is_better
    lines = ["", "## Beside AdamW at the same learning rate", ""]
    lines += [
        f"{measure} less that of AdamW, {'lower is better' if is_loss else 'in points'}. Mean over the tasks and the "
        "rates below AdamW's best, at it and above it. These figures chose AdamW's best rate too, which favours AdamW "
        "there. Nothing where a rate was not tried, or one of the two diverged:",
        "",
        "| optimizer | below | AdamW's best rate | above | all rates |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for title in dict.fromkeys(title for contenders in found.values() for title in contenders if title != "AdamW"):
        sides = [ahead[title][side] for side in (-1, 0, 1)]
        means = [mean(values) if values else math.nan for values in (*sides, list(chain(*sides)))]
        entries = [(f"{x:+.3f}" if is_loss else f"{100 * x:+.1f}") if math.isfinite(x) else "" for x in means]
        if any(entries):
            lines.append(f"| {title} | " + " | ".join(entries) + " |")
    return lines


def report_of_choice(cells: list[dict[str, Any]], folder: Path) -> list[str]:
    """The tables of a study without a test; draws its figure."""
    cells = of_whole_seeds([cell for cell in cells if cell.get("split") != "test"])
    found = gather(cells)
    lines = ["## Each optimizer at its best rate", "", *best_of_each(found), *beside_adamw(found)]
    titles = {cell["title"] for cell in cells if cell["title"] == title_of(cell)}
    families = Counter(family_of(title) for title in titles if "p_max" in title)
    if families:
        lines += [
            "",
            "## One rate for every p_max",
            "",
            "The points of accuracy that one rate for all p_max loses to the rate tuned for each, at the p_max that "
            "loses most, and that rate:",
            "",
            *carry_over(found),
        ]
    for task, contenders in found.items():
        seeds = len({cell["seed"] for cell in cells if cell["task"] == task})
        lines += ["", f"## {task}", "", f"{TASKS[task].description}. Seeds: {seeds}.", "", *table_of(task, contenders)]
    if families and max(families.values()) > 1:
        draw_p_max(found, folder / "p_max.png")
    else:
        draw_rates(found, folder / "rates.png")
    return lines


def report_of_test(cells: list[dict[str, Any]], study: dict[str, Any], folder: Path) -> list[str]:
    """The tables of a study with a test; draws its figures."""
    contenders = {
        title_of({"optimizer": contender["optimizer"], "options": options}): contender
        for task in dict.fromkeys(cell["task"] for cell in cells)
        for contender, options in contenders_of(study, task)
    }
    first_rates = {
        contender.get("title", title): float(contender["first_rate"])
        for title, contender in contenders.items()
        if "first_rate" in contender
    }
    tested = Tested([cell for cell in cells if title_of(cell) in contenders], first_rates)
    draw_rates(tested.validation, folder / "rates.png")
    draw_curves(tested, study.get("curves", tested.titles), folder / "curves.png")
    lines = tables_of_tested(tested)
    for task, of_contenders in tested.validation.items():
        lines += ["", f"## {task}, on the examples held out, over the rate", "", f"{TASKS[task].description}.", ""]
        lines += table_of(task, of_contenders)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders with a cells.jsonl; the first gets the files")
    parser.add_argument("--study", type=Path, help="the study is that of this file; default: that of the last run")
    args = parser.parse_args()
    cells = [cell for folder in args.folders for cell in read_cells(folder / "cells.jsonl")]
    if not cells:
        parser.error(f"{args.folders[0]} holds no finished cells: run run_study.py first")
    order = list(TASKS)
    cells.sort(key=lambda cell: order.index(cell["task"]))
    command, commits, devices, study = read_origin(args.folders[0] / "cells.jsonl")
    if args.study:
        study = yaml.safe_load(args.study.read_text(encoding="utf-8"))
    for cell in cells:
        cell["title"], cell["rate"] = known_as(cell, study)
    folder = args.folders[0]
    tables = report_of_test(cells, study, folder) if "test" in study else report_of_choice(cells, folder)
    note = args.folders[0] / "note.md"
    lines = [
        "# Results",
        "",
        *([note.read_text(encoding="utf-8")] if note.exists() else []),
        f"Made by `python examples/benchmarks/study_report.py` from {len(cells)} trainings, the first by `{command}`. "
        f"Commits: {commits}. Devices: {devices}. Mean and standard deviation over the seeds.",
        "",
        *tables,
    ]
    (args.folders[0] / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(args.folders[0] / "results.md")


def read_origin(path: Path) -> tuple[str, str, str, dict[str, Any]]:
    """Of the runs in a file of cells: the first command, all commits, all devices, and the study of the last."""
    runs = [entry for entry in read_entries(path) if "run" in entry] or [{"run": {}}]
    commits = dict.fromkeys(str(entry["run"].get("commit"))[:10] for entry in runs)
    devices = dict.fromkeys(str(entry["run"].get("device")) for entry in runs)
    return runs[0]["run"].get("command"), ", ".join(commits), "; ".join(devices), runs[-1].get("study", {})


if __name__ == "__main__":
    main()
