"""Run a study: every cell of tasks x optimizers x learning rates x seeds that a file names, and is not done yet.

    python examples/benchmarks/run_study.py examples/benchmarks/studies/grad_rms.yaml --cifar10 PATH

Writes one JSON line per cell to results/NAME/cells.jsonl, after a line that tells the command, the commit, the
versions and the device. A cell that is in the file is not run again, so a run that was cut off goes on where it was.
Each worker is one process with one thread. study_report.py makes the tables and figures.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from output_folder import make_folder
from provenance import provenance
from study.tasks import TASKS, use_cifar10
from study.training import train
from tqdm.auto import tqdm

HERE = Path(__file__).resolve().parent


def cells_of(study: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The cells of a study: all tasks and optimizers with the first seed, then with the next."""
    for seed, task, contender in itertools.product(study["seeds"], study["tasks"], study["contenders"]):
        if task in contender.get("not_on", ()):
            continue
        varied = contender.get("vary", {})
        for values in itertools.product(*varied.values()):
            options = {**contender.get("options", {}), **dict(zip(varied, values, strict=True))}
            for rate in contender["rates"]:
                yield {
                    "task": task,
                    "optimizer": contender["optimizer"],
                    "options": options,
                    "rate": float(rate),
                    "seed": seed,
                }


def key_of(cell: dict[str, Any]) -> str:
    return json.dumps({name: cell[name] for name in ("task", "optimizer", "options", "rate", "seed")}, sort_keys=True)


def read_cells(path: Path) -> list[dict[str, Any]]:
    """The finished cells in a file of JSON lines; a last line that was cut off is left out."""
    cells = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "accuracy" in entry:
            cells.append(entry)
    return cells


def _prepare_worker(cifar10: str) -> None:
    torch.set_num_threads(1)
    use_cifar10(cifar10)


def _run(cell: dict[str, Any]) -> dict[str, Any]:
    return {**cell, **train(cell)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="a file in studies/")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes, of one thread each")
    parser.add_argument("--cifar10", default="uoft-cs/cifar10", help="CIFAR-10: on the Hub, or a folder of its files")
    parser.add_argument("--only", nargs="*", default=[], metavar="TASK", help="run these tasks of the study only")
    parser.add_argument("--output_dir", type=Path, help="default: results/NAME beside this script")
    args = parser.parse_args()
    study = yaml.safe_load(args.study.read_text(encoding="utf-8"))
    wrong = [task for task in (*study["tasks"], *args.only) if task not in TASKS]
    if wrong:
        parser.error(f"unknown task {wrong[0]!r}; the tasks are {', '.join(TASKS)}")
    folder = args.output_dir or HERE / "results" / args.study.stem
    make_folder(parser, "--output_dir", folder)
    path = folder / "cells.jsonl"
    done = {key_of(cell) for cell in read_cells(path)}
    cells = [cell for cell in cells_of(study) if key_of(cell) not in done]
    cells = [cell for cell in cells if not args.only or cell["task"] in args.only]
    if not cells:
        print(f"all cells are in {path}")
        return
    torch.set_num_threads(1)
    use_cifar10(args.cifar10)
    for task in dict.fromkeys(cell["task"] for cell in cells):  # before the workers are forked, which then share it
        TASKS[task].data()
        TASKS[task].model()
    facts = provenance(Path(__file__).name, ("numpy", "lion-pytorch", "scikit-learn", "datasets"), torch.device("cpu"))
    if Path(args.cifar10).is_dir():  # a folder of this machine tells nobody else anything
        facts["command"] = facts["command"].replace(args.cifar10, "CIFAR10")
    with (
        open(path, "a", encoding="utf-8") as file,
        multiprocessing.get_context("fork").Pool(args.workers, _prepare_worker, (args.cifar10,)) as pool,
    ):
        file.write(json.dumps({"run": facts}) + "\n")
        for cell in tqdm(pool.imap_unordered(_run, cells), total=len(cells), unit="cell", file=sys.stdout):
            file.write(json.dumps(cell) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
