"""Writes the tables of options.md from the records of hf_lpsgd, and those of other pages from reports of benchmarks.

    python docs/tables.py

A table lies between two comments, `<!-- table: NAME -->` and `<!-- end of table -->`. A benchmark's table is named by
the folder of its results and by its heading in the report there: `shakespeare: shakespeare, on the test data`.
"""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_lpsgd.optim import OPTIMIZERS, OptimizerRecord
from hf_lpsgd.schedules import P_GRANULARITY, P_SCHEDULE, P_SCHEDULES
from hf_lpsgd.trainer import OptimArgs

DOCS = Path(__file__).parent
PAGES = (DOCS / "options.md", DOCS / "results.md", DOCS / "memory.md")
RESULTS = DOCS.parent / "examples" / "benchmarks" / "results"

_TABLE = re.compile(r"(<!-- table: (?P<name>.*?) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def renewed(page: str) -> str:
    """The text of a page with its tables made anew."""
    return _TABLE.sub(lambda match: f"{match[1]}\n{_made(match['name'])}\n\n{match[3]}", page)


def _made(name: str) -> str:
    folder, _, heading = name.partition(": ")
    return of_report(folder, heading) if heading else TABLES[name]()


def of_report(folder: str, heading: str) -> str:
    """The first table under a heading in the report of a benchmark."""
    _, section = (RESULTS / folder / "results.md").read_text(encoding="utf-8").split(f"## {heading}\n", 1)
    return section[section.index("|") :].split("\n\n", 1)[0].rstrip()


def optimizers() -> str:
    rows = [(f"`{record.name}`", f"`{record.cls.__name__}`", record.description) for record in OPTIMIZERS.values()]
    return _table(("`--optim`", "class", "what it is"), rows)


def options_of(name: str) -> str:
    record = OPTIMIZERS[name]
    rows = [
        (
            f"`{option.name}`",
            _default(record, option.name),
            option.allowed,
            _for_trainer(option),
            option.meaning,
        )
        for option in record.options
    ]
    return _table(("option", "default", "allowed", "with the Trainer", "meaning"), rows)


def _default(record: OptimizerRecord, name: str) -> str:
    default = _value(inspect.signature(record.cls).parameters[name].default)
    with_trainer = record.trainer_defaults.get(name)
    return default if with_trainer is None else f"{default}; `{with_trainer}` with the Trainer"


def options_of_the_p_schedule() -> str:
    rows = [
        (f"`{option.name}`", f"`{argument}`", _value(default), option.allowed, option.meaning)
        for option, argument, default in (
            (P_SCHEDULE, "schedule", OptimArgs.p_schedule),
            (P_GRANULARITY, "granularity", OptimArgs.p_granularity),
        )
    ]
    return _table(("in `--optim_args`", "of `tie_p_schedule`", "default", "allowed", "meaning"), rows)


def p_schedules() -> str:
    rows = [
        (f"`{name}`", record.description.format(p_max="p_max"), "yes" if record.needs_horizon else "no")
        for name, record in P_SCHEDULES.items()
    ]
    return _table(("`p_schedule`", "p", "needs the length of the run"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "optimizers": optimizers,
    **{
        f"options of {name}": lambda name=name: options_of(name)
        for name, record in OPTIMIZERS.items()
        if record.ordinary is None
    },
    "options of the p schedule": options_of_the_p_schedule,
    "p schedules": p_schedules,
}


def _for_trainer(option: Any) -> str:
    flag = getattr(option, "trainer_flag", None)
    if flag is not None:
        return f"`{flag}`"
    return f"`--optim_args {option.name}=...`" if getattr(option, "for_trainer", True) else "no"


def _value(value: Any) -> str:
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
