"""Measure the paper's premise: which p the loss asks for, over a training.

    python examples/benchmarks/measure_premise.py --cifar10 PATH --output_dir examples/benchmarks/results/premise

Trains tasks of the study with AdamW and LPSGDM. At some moments it computes the decrease of the loss that each p
promises (see premise/geometry.py), the spread of the gradient and of the Hessian's diagonal, and the noise of the
gradient. Writes results.json, with the command, the commit, the versions and the device, results.md and results.png.
"""

import argparse
import json
import math
import multiprocessing
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from output_folder import make_folder
from premise.geometry import ORDERS, noise_to_signal, probe, promised_decrease, spread
from provenance import provenance
from study.data import use_data
from study.tasks import TASKS
from study.training import train
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

RUNS = {
    "AdamW": {"optimizer": "AdamW", "options": {}, "rate": 1e-3},
    "LPSGDM": {"optimizer": "LPSGDM", "options": {"grad_rms": "auto", "p_max": 20, "momentum": 0.6}, "rate": 1e-3},
}
BATCHES = 8
BATCH_SIZE = 64


def measure(task: str, model: nn.Module, probes: int) -> dict[str, Any]:
    """Which decrease each p promises on a large batch; the noise is that of batches of 64."""
    inputs, labels = (part[: BATCHES * BATCH_SIZE] for part in TASKS[task].data().train)

    def loss(start: int, number: int) -> torch.Tensor:
        outputs = model(inputs[start : start + number]).flatten(0, -2)
        return cross_entropy(outputs, labels[start : start + number].flatten())

    losses = [partial(loss, 0, len(inputs)), *(partial(loss, i * BATCH_SIZE, BATCH_SIZE) for i in range(BATCHES))]
    (gradient, *small), curvature = probe(model, losses, probes)
    shares = promised_decrease(gradient, curvature)
    noise = noise_to_signal(small)
    by_batch = [promised_decrease(piece, curvature) for piece in small]
    return {
        "shares": {f"{p:g}": float(f"{share:.4g}") for p, share in shares.items()},
        "best_p": best_order(shares),
        "best_p_of_small_batches": [best_order(piece) for piece in by_batch],
        "gradient_spread": float(f"{spread(gradient):.4g}"),
        "curvature_spread": float(f"{spread(curvature):.4g}"),
        "gradient_noise": float(f"{noise:.4g}") if math.isfinite(noise) else None,
    }


def best_order(shares: dict[float, float]) -> float:
    return max(shares, key=lambda p: shares[p])


def run(wanted: dict[str, Any]) -> dict[str, Any]:
    """Train one task with one optimizer and seed, and measure at `moments` of the training."""
    task, name, seed, moments, probes = (wanted[key] for key in ("task", "optimizer", "seed", "moments", "probes"))
    points: list[dict[str, Any]] = []

    def watch(step: int, steps: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        at = {round(index * (steps - 1) / (moments - 1)) for index in range(moments)}
        if step in at:
            point = {"progress": round(step / (steps - 1), 4), **measure(task, model, probes)}
            if "p" in optimizer.param_groups[0]:
                point["p"] = float(f"{optimizer.param_groups[0]['p']:.4g}")
            points.append(point)

    result = train({"task": task, "seed": seed, **RUNS[name]}, watch=watch)
    points[-1]["accuracy"] = result["accuracy"]
    return {"task": task, "seed": seed, **RUNS[name], "points": points}


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| task | optimizer | best p at the start | in the middle | at the end | least and most that p = 2 promises, "
        "of the best | spread of the gradient, start and end | of the Hessian's diagonal | "
        "noise, start, middle and end |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for task, name in dict.fromkeys((result["task"], result["optimizer"]) for result in results):
        of_runs = [result["points"] for result in results if (result["task"], result["optimizer"]) == (task, name)]
        places = (0, len(of_runs[0]) // 2, -1)
        best = [f"{median(points[place]['best_p'] for points in of_runs):g}" for place in places]
        of_two = [point["shares"]["2"] for points in of_runs for point in points]
        ends = [
            " and ".join(f"{mean(points[place][key] for points in of_runs):.3g}" for place in (0, -1))
            for key in ("gradient_spread", "curvature_spread")
        ]
        ends.append(
            ", ".join(noise_in_words([points[place]["gradient_noise"] for points in of_runs]) for place in places)
        )
        lines.append(
            f"| {task} | {name} | " + " | ".join(best) + f" | {min(of_two):.3f} to {max(of_two):.3f} | "
            "" + " | ".join(ends) + " |"
        )
    return "\n".join(lines) + "\n"


def noise_in_words(values: list[float | None]) -> str:
    """Their median; no number where the noise hides the gradient."""
    middle = median(math.inf if value is None else value for value in values)
    return f"{middle:.2g}" if math.isfinite(middle) else "too large to tell"


def draw(results: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(result["task"] for result in results))
    figure = Figure(figsize=(9, 2.6 * len(tasks)), dpi=80, layout="constrained")
    axes = figure.subplots(len(tasks), 2, squeeze=False, sharex=True)
    for (left, right), task in zip(axes, tasks, strict=True):
        for color, name in enumerate(RUNS):
            of_runs = [result["points"] for result in results if (result["task"], result["optimizer"]) == (task, name)]
            progress = [point["progress"] for point in of_runs[0]]
            for points in of_runs:
                left.plot(progress, [point["best_p"] for point in points], color=f"C{color}", alpha=0.25, linewidth=1)
            middle = [median(points[place]["best_p"] for points in of_runs) for place in range(len(progress))]
            left.plot(progress, middle, "o-", color=f"C{color}", markersize=3, label=f"best p, trained by {name}")
            for order, style in ((2, "-"), (20, "--")):
                shares = [mean(run[place]["shares"][str(order)] for run in of_runs) for place in range(len(progress))]
                right.plot(progress, shares, style, color=f"C{color}", linewidth=1, label=f"p = {order}, {name}")
            if name == "LPSGDM":
                left.plot(progress, [point["p"] for point in of_runs[0]], "k--", linewidth=1, label="the paper's p")
        left.set(yscale="log", yticks=[2, 6, 20, 100, 1000], ylim=(1.8, 1300))
        left.set_yticklabels(["2", "6", "20", "100", "sign"])
        left.set_title(f"{task}: p of the largest promised decrease", fontsize=9)
        right.set(ylim=(0, 1.05))
        right.set_title(f"{task}: promised decrease, as a share of the best", fontsize=9)
        for axis in (left, right):
            axis.tick_params(labelsize=7)
            axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7)
    axes[0][1].legend(fontsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("progress of the training", fontsize=8)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=["digits_vit", "cifar_vit", "cifar_resnet", "finetune_resnet"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--moments", type=int, default=9, help="per training")
    parser.add_argument("--probes", type=int, default=16, help="random vectors per moment, for the Hessian's diagonal")
    parser.add_argument("--workers", type=int, help="processes of one thread; default: one per core")
    parser.add_argument("--cifar10", default="uoft-cs/cifar10", help="CIFAR-10: on the Hub, or a folder of its files")
    args = parser.parse_args()
    unknown = [task for task in args.tasks if task not in TASKS or TASKS[task].script]
    if unknown:
        parser.error(f"unknown task {unknown[0]!r}; the tasks are {', '.join(TASKS)}")
    make_folder(parser, "--output_dir", args.output_dir)
    use_data(cifar10=args.cifar10)
    torch.set_num_threads(1)
    facts = provenance(Path(__file__).name, ("numpy", "scikit-learn", "datasets"))
    runs = [
        {"task": task, "optimizer": name, "seed": seed, "moments": args.moments, "probes": args.probes}
        for task in args.tasks
        for name in RUNS
        for seed in args.seeds
    ]
    for task in args.tasks:  # before the workers are forked, which then share it
        TASKS[task].data()
        TASKS[task].model()
    with multiprocessing.get_context("fork").Pool(args.workers, torch.set_num_threads, (1,)) as pool:
        results = list(tqdm(pool.imap(run, runs), total=len(runs), unit="run"))
    settings = {"orders": ORDERS, "batch": BATCHES * BATCH_SIZE, "probes": args.probes}
    lines = json.dumps({**facts, **settings}, indent=2)[:-2] + ',\n  "results": [\n    '
    lines += ",\n    ".join(json.dumps(result) for result in results) + "\n  ]\n}\n"
    (args.output_dir / "results.json").write_text(lines, encoding="utf-8")
    (args.output_dir / "results.md").write_text(table(results), encoding="utf-8")
    draw(results, args.output_dir / "results.png")
    print(table(results))


if __name__ == "__main__":
    main()
