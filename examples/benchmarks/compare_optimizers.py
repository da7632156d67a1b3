"""Compare LPSGDM with AdamW and SGD on the digits, each at its own best learning rate.

    python examples/benchmarks/compare_optimizers.py --output_dir examples/benchmarks/results/digits

Trains the default model of run_image_classification.py, by that very script: first every optimizer at every
learning rate of its grid with one seed, then each at its best rate with the other seeds too. Writes results.json (with
the command, the commit, the versions and the device), results.md and results.png.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from output_folder import make_folder
from provenance import provenance
from tqdm.auto import tqdm

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "image_classification"))

import run_image_classification as image_classification  # noqa: E402


@dataclass(frozen=True)
class Contender:
    """One optimizer, as flags of the Trainer, and the learning rates it is tried at."""

    name: str
    flags: tuple[str, ...]
    rates: tuple[float, ...]


def lpsgdm(p_max: float, rates: tuple[float, ...]) -> Contender:
    return Contender(f"LPSGDM, p_max={p_max:g}", ("--optim", "lpsgdm", "--optim_args", f"p_max={p_max:g}"), rates)


CONTENDERS = (
    Contender("AdamW", ("--optim", "adamw_torch"), (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)),
    Contender("SGD, momentum 0.9", ("--optim", "sgd", "--optim_args", "momentum=0.9"), (0.01, 0.03, 0.1, 0.3, 1.0)),
    lpsgdm(2, (0.03, 0.1, 0.3, 1.0, 3.0)),
    lpsgdm(3, (0.01, 0.03, 0.1, 0.3)),
    lpsgdm(6, (1e-3, 3e-3, 0.01, 0.03)),
    lpsgdm(12, (3e-4, 1e-3, 3e-3, 0.01)),
    lpsgdm(20, (3e-4, 1e-3, 3e-3, 0.01)),
    lpsgdm(50, (3e-4, 1e-3, 3e-3, 0.01)),
)


def accuracy(contender: Contender, rate: float, seed: int, epochs: int, overrides: str | None) -> float:
    """Train once with the example script; the accuracy on the evaluation split after the last epoch."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--do_train --do_eval --num_train_epochs {epochs} --learning_rate {rate} --seed {seed} --use_cpu"
        quiet = "--eval_strategy no --save_strategy no --report_to none --disable_tqdm true --log_level error"
        sys.argv = [
            "run_image_classification.py",
            *contender.flags,
            *flags.split(),
            *quiet.split(),
            "--output_dir",
            folder,
            *(("--config_overrides", overrides) if overrides is not None else ()),
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            image_classification.main()
        return json.loads((Path(folder) / "eval_results.json").read_text())["eval_accuracy"]


def table(results: list[dict[str, Any]]) -> str:
    lines = ["| optimizer | best learning rate | accuracy, mean | lowest | highest |", "|---|---|---|---|---|"]
    for result in results:
        scores = result["accuracies"]
        lines.append(
            f"| {result['optimizer']} | {result['best_rate']:g} | {mean(scores):.3f} | {min(scores):.3f} "
            f"| {max(scores):.3f} |"
        )
    return "\n".join(lines) + "\n"


def plot(results: list[dict[str, Any]], path: Path, epochs: int) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for index, result in enumerate(results):
        rates = sorted(float(rate) for rate in result["by_rate"])
        style = "--" if "LPSGDM" not in result["optimizer"] else "-"
        color = f"C{index}"
        axes.plot(rates, [result["by_rate"][str(rate)] for rate in rates], style, marker="o", color=color, ms=4)
        axes.plot([], [], style, color=color, label=result["optimizer"])
    axes.set(xscale="log", xlabel="learning rate", ylabel="accuracy", title=f"Digits, small ViT, {epochs} epochs")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--num_train_epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="the first one picks the rates")
    parser.add_argument("--config_overrides", help="changes to the model, as in run_image_classification.py")
    args = parser.parse_args()
    make_folder(parser, "--output_dir", args.output_dir)
    origin = provenance("compare_optimizers.py", ("transformers", "accelerate", "datasets", "scikit-learn"))
    runs = sum(len(contender.rates) + len(args.seeds) - 1 for contender in CONTENDERS)
    results = []
    with tqdm(total=runs, unit="run") as progress:
        for contender in CONTENDERS:
            by_rate = {}
            for rate in contender.rates:
                progress.set_description(f"{contender.name}, lr {rate:g}")
                by_rate[rate] = accuracy(contender, rate, args.seeds[0], args.num_train_epochs, args.config_overrides)
                progress.update()
            best = max(by_rate, key=lambda rate: by_rate[rate])
            scores = [by_rate[best]]
            for seed in args.seeds[1:]:
                progress.set_description(f"{contender.name}, seed {seed}")
                scores.append(accuracy(contender, best, seed, args.num_train_epochs, args.config_overrides))
                progress.update()
            results.append(
                {
                    "optimizer": contender.name,
                    "best_rate": best,
                    "accuracies": scores,
                    "by_rate": {str(rate): score for rate, score in by_rate.items()},
                }
            )
    settings = {
        "config_overrides": args.config_overrides,
        "num_train_epochs": args.num_train_epochs,
        "seeds": args.seeds,
    }
    (args.output_dir / "results.json").write_text(
        json.dumps({**origin, **settings, "results": results}, indent=2) + "\n"
    )
    (args.output_dir / "results.md").write_text(table(results))
    plot(results, args.output_dir / "results.png", args.num_train_epochs)
    print(table(results))
    print(f"written: {args.output_dir}/results.json, results.md and results.png")


if __name__ == "__main__":
    main()
