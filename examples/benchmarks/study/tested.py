"""Tables of a study whose contenders were tested: at the best rate, at the first one, at AdamW's best."""

from collections import defaultdict
from statistics import mean, stdev
from typing import Any

from .tasks import TASKS
from .words import best_rate, spread

__all__ = ["Tested", "tables_of_tested"]

Cells = list[dict[str, Any]]

# Steps are counted until the metric on the examples held out is this close to AdamW's at the end.
SHARE = 0.95


class Tested:
    """The cells of a study with a test, and what is asked of them."""

    __test__ = False  # pytest looks for classes of this name

    def __init__(self, cells: Cells, first_rates: dict[str, float]) -> None:
        """first_rates: by title of the contender, the rate that a user would try first, where there is one."""
        self.first_rates = first_rates
        self.tests: dict[tuple[str, str], dict[float, Cells]] = defaultdict(lambda: defaultdict(list))
        self.validation: dict[str, dict[str, dict[float, list[float]]]] = defaultdict(
            lambda: defaultdict(lambda: defaultdict(list))
        )
        self._choice: dict[tuple[str, str, float], Cells] = defaultdict(list)
        # Two machines can have one name; trainings on one machine are mostly of one commit.
        self._times: dict[str, dict[tuple[str, str], dict[str, list[float]]]] = defaultdict(
            lambda: defaultdict(lambda: defaultdict(list))
        )
        for cell in cells:
            task, title = cell["task"], cell["title"]
            if cell["split"] == "test":
                self.tests[task, title][cell["rate"]].append(cell)
            else:
                self.validation[task][title][cell["rate"]].append(TASKS[task].value(cell))
                self._choice[task, title, cell["rate"]].append(cell)
            if "own_ms_per_step" in cell:
                self._times[task][cell["device"], cell["commit"]][title].append(cell["own_ms_per_step"])
        self.tasks = [task for task in TASKS if any(cell["task"] == task for cell in cells)]
        self.titles = list(dict.fromkeys(cell["title"] for cell in cells))
        self._steps: dict[str, float] = defaultdict(float)  # of a whole training: a run that diverged has fewer
        for cell in cells:
            if cell.get("curve"):
                self._steps[cell["task"]] = max(self._steps[cell["task"]], cell["curve"][-1]["step"])

    def best_rate(self, task: str, title: str) -> float:
        """By the examples held out."""
        return best_rate(task, self.validation[task][title])

    def rate(self, task: str, title: str, which: str) -> float:
        """The rate that is `best`, `first`, or the best of `AdamW`."""
        if which == "first":
            return self.first_rates[title]
        return self.best_rate(task, title if which == "best" else which)

    def cells(self, task: str, title: str, which: str) -> Cells:
        """The tests at that rate; none where there are none yet."""
        if (task, title) not in self.tests or (which == "first" and title not in self.first_rates):
            return []
        return self.tests[task, title].get(self.rate(task, title, which), [])

    def values(self, task: str, title: str, which: str) -> list[float]:
        """The task's metric in those tests."""
        return [TASKS[task].value(cell) for cell in self.cells(task, title, which)]

    def steps_to(self, task: str, title: str) -> float | None:
        """Mean number of steps, as a share of the training, at the best rate; None if a run never got there."""
        cells, of_adamw = self.cells(task, title, "best"), self.cells(task, "AdamW", "best")
        if not cells or not of_adamw:
            return None
        lower = TASKS[task].lower_is_better
        wanted = mean(TASKS[task].value(cell["curve"][-1]) for cell in of_adamw) * (1 / SHARE if lower else SHARE)
        found = []
        for cell in cells:
            values = [(point["step"], TASKS[task].value(point)) for point in cell["curve"]]
            reached = [step for step, value in values if (value <= wanted if lower else value >= wanted)]
            if not reached:
                return None
            found.append(reached[0] / self._steps[task])
        return mean(found)

    def times(self, task: str) -> tuple[str, dict[str, float]]:
        """A device on which AdamW and most others were trained, and the least time of a step there, by title."""
        of_task = self._times[task]
        where = max(of_task, key=lambda key: ("AdamW" in of_task[key], len(of_task[key])), default=("", ""))
        # Other load only adds to a time.
        return where[0], {title: min(found) for title, found in of_task[where].items()}

    def trainings(self, task: str, titles: list[str]) -> dict[str, Cells]:
        """Those at the best rate that have a curve: the tests, or before all are there the choice of the rate."""
        tried = [title for title in titles if title in self.validation[task]]
        tests = {title: self.cells(task, title, "best") for title in tried}
        if not all(tests.values()):
            tests = {title: self._choice[task, title, self.best_rate(task, title)] for title in tried}
        return {title: cells for title, cells in tests.items() if all(cell.get("curve") for cell in cells)}

    def curve(self, cells: Cells, name: str) -> tuple[list[float], list[float], list[float]]:
        """Steps, mean and standard deviation of an entry of their curves."""
        shortest = min((cell["curve"] for cell in cells), key=len)  # a run that diverged was cut off
        steps = [point["step"] for point in shortest]
        values = [[cell["curve"][place].get(name) for cell in cells] for place in range(len(steps))]
        known = [place for place, of_cells in enumerate(values) if None not in of_cells]
        spreads = [stdev(values[place]) if len(cells) > 1 else 0.0 for place in known]
        return [steps[place] for place in known], [mean(values[place]) for place in known], spreads


def _table(tested: Tested, which: str, with_rate: bool) -> list[str]:
    lines = ["| optimizer | " + " | ".join(tested.tasks) + " |", "| --- |" + " ---: |" * len(tested.tasks)]
    for title in tested.titles:
        entries = []
        for task in tested.tasks:
            values = tested.values(task, title, which)
            rate = f" ({tested.rate(task, title, which):g})" if values and with_rate else ""
            entries.append(spread(values) + rate if values else "")
        if any(entries):
            lines.append(f"| {title} | " + " | ".join(entries) + " |")
    return lines


def tables_of_tested(tested: Tested) -> list[str]:
    """All optimizers on all tasks; of one or two tasks, all about each in one table."""
    if len(tested.tasks) <= 2:
        return [line for task in tested.tasks for line in _table_of_task(tested, task)]
    measures = " or ".join(sorted({TASKS[task].measure for task in tested.tasks}))
    lines = ["## At the best learning rate", "", f"Chosen on examples held out, {measures} on the test data:", ""]
    lines += _table(tested, "best", with_rate=True)
    if tested.first_rates:
        first = ", ".join(f"{title}: {rate:g}" for title, rate in tested.first_rates.items())
        lines += ["", "## At the rate that a user would try first", "", f"The rates: {first}.", ""]
        lines += _table(tested, "first", with_rate=False)
    lines += ["", "## At AdamW's best rate", "", "For each task, the rate that was best for AdamW:", ""]
    lines += _table(tested, "AdamW", with_rate=True)
    lines += ["", f"## Steps to {SHARE:.0%} of AdamW's result", ""]
    lines += [
        "As a share of the training, at the best rate, on the examples of the curves; a dash where a run did not get "
        "there. A curve has 20 points, or as many as the Trainer evaluated.",
        "",
        "| optimizer | " + " | ".join(tested.tasks) + " |",
        "| --- |" + " ---: |" * len(tested.tasks),
    ]
    for title in tested.titles:
        if not any((task, title) in tested.tests for task in tested.tasks):
            continue
        shares = [tested.steps_to(task, title) for task in tested.tasks]
        lines.append(f"| {title} | " + " | ".join("-" if s is None else f"{s:.2f}" for s in shares) + " |")
    return lines


def _table_of_task(tested: Tested, task: str) -> list[str]:
    columns = {
        "best": f"{TASKS[task].measure} there",
        "AdamW": f"at AdamW's best rate, {tested.best_rate(task, 'AdamW'):g}",
    }
    if tested.first_rates:
        columns["first"] = "at the first rate to try"
    heads = ["bytes of state per parameter", "best rate", *columns.values()]
    heads += [f"share of the steps to {SHARE:.0%} of AdamW's result", "ms per step"]
    rows, seeds, (device, times) = [], 0, tested.times(task)
    for title in tested.titles:
        cells = tested.cells(task, title, "best")
        if not cells:
            continue
        seeds = max(seeds, len(cells))
        found = {which: tested.values(task, title, which) for which in columns}
        shown = {which: spread(values) if values else "" for which, values in found.items()}
        if found.get("first"):
            shown["first"] += f" ({tested.first_rates[title]:g})"
        steps = tested.steps_to(task, title)
        state = f"{cells[0]['state_bytes'] / cells[0]['parameters']:.2f}" if "state_bytes" in cells[0] else ""
        time = f"{times[title]:.0f}" if title in times else ""
        row = [title, state, f"{tested.best_rate(task, title):g}", *shown.values()]
        rows.append([*row, "-" if steps is None else f"{steps:.2f}", time])
    lower = "Lower is better. " if TASKS[task].lower_is_better else ""
    of_time = (
        " The time is that of this process alone for a whole step of the Trainer on one core: the median of a "
        f"training, and of all trainings of an optimizer on one device ({device}), by one commit, the least."
    )
    return [
        f"## {task}, on the test data",
        "",
        f"{TASKS[task].description}. {lower}Seeds: {seeds}. Rates were chosen on other examples, with one seed. The "
        f"share is that at the best rate, until the metric of the curves is {SHARE:g} times AdamW's last one, or a "
        f"loss the last one over that.{of_time if times else ''}",
        "",
        "| optimizer | " + " | ".join(heads) + " |",
        "| --- |" + " ---: |" * len(heads),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]
