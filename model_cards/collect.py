"""Copy the cards that training runs wrote into this folder, and list them in its README.md.

    python model_cards/collect.py runs/digits runs/cifar10-resnet

Each run keeps the name of its folder. Cards copied earlier stay listed; name a run again to renew its card.
"""

import argparse
import shutil
from pathlib import Path

from huggingface_hub import ModelCard

COPIED = ("README.md", "training_curves.png", "trainer_state.json")
HEAD = """\
# Model cards

Cards of models trained with the examples, as the runs themselves wrote them and as `--push_to_hub` pushes them. Each
has the command, the versions and the hardware it was trained with; `trainer_state.json` beside it has every logged
number. This folder is written by `collect.py`. The weights are not in it.

| model | dataset | type | optimizer | result |
|---|---|---|---|---|
"""


def collect(run: Path, folder: Path) -> None:
    """Copy the card of `run`, and what it refers to, into a folder of the same name in `folder`."""
    missing = [name for name in COPIED if not (run / name).is_file()]
    if missing:
        raise SystemExit(f"collect.py: error: {run} is no finished run: it has no {', '.join(missing)}")
    target = folder / run.resolve().name
    target.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        shutil.copy(run / name, target / name)


def index(folder: Path) -> str:
    """The list of all cards in `folder`."""
    rows = []
    for path in sorted(folder.glob("*/README.md")):
        card, name = ModelCard.load(path), path.parent.name
        results = card.data.eval_results or []
        metrics = [f"{result.metric_type} {result.metric_value:.4f}" for result in results]
        dataset = results[0].dataset_name if results else "not evaluated"
        kind, optim, _ = card.data.tags[-3:]  # as card/writing.py of the showcase puts them
        rows.append(f"| [{name}]({name}/README.md) | {dataset} | {kind} | `{optim}` | {', '.join(metrics)} |\n")
    return HEAD + "".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="output folders of finished runs")
    parser.add_argument(
        "--to", type=Path, default=Path(__file__).parent, help="folder of the cards; default: this one"
    )
    arguments = parser.parse_args()
    for run in arguments.runs:
        collect(run, arguments.to)
    (arguments.to / "README.md").write_text(index(arguments.to), encoding="utf-8")


if __name__ == "__main__":
    main()
