"""The rate of convergence: mean squared gradient norm against the number of steps T, on a nonconvex problem.

    python examples/benchmarks/convergence_rate.py --output_dir examples/benchmarks/results/convergence_rate

The problem is the sum over 100 coordinates of a_i (x_i^2 + 3 sin(x_i)^2) / 2, which is smooth, bounded from below and
not convex, with the a_i from 0.1 to 10. Its gradient comes with noise, even between -1 and 1 in each coordinate, so
its variance is bounded. Each run has T steps at the constant learning rate c / sqrt(T), with p annealed over the T
steps. c is the best of a grid at the smallest T. The optimizers step element by element, so all seeds are rows of one
parameter. The slope of log(mean squared gradient norm) over log T is a least-squares fit for each seed; its confidence
interval is that of their mean, by Student's t. Writes results.json, results.md and results.png.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from output_folder import make_folder
from provenance import provenance
from torch.optim.lr_scheduler import ConstantLR
from tqdm.auto import tqdm

from hf_lpsgd import LPSGD, LPSGDM, tie_p_schedule

DIMENSIONS = 100
CONTENDERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "LPSGD, p_max=20": (LPSGD, {"p_max": 20.0}),
    "LPSGDM, p_max=20": (LPSGDM, {"p_max": 20.0}),
    "LPSGD, p_max=3": (LPSGD, {"p_max": 3.0}),
    "LPSGDM, p_max=3": (LPSGDM, {"p_max": 3.0}),
    "LPSGDM, p_max=20, grad_rms=auto": (LPSGDM, {"p_max": 20.0, "grad_rms": "auto"}),
    "LPSGD, p_max=2 (SGD)": (LPSGD, {"p_max": 2.0}),
}
SCALES = tuple(float(f"{10 ** (index / 4):.3g}") for index in range(-8, 9))
# The 0.975 quantiles of Student's t, by degrees of freedom.
STUDENT = {7: 2.3646, 9: 2.2622, 15: 2.1314, 19: 2.0930, 31: 2.0395, 63: 1.9983}


def squared_norms(cls: Any, options: dict[str, Any], scale: float, steps: int, seeds: int) -> np.ndarray:
    """The mean over the steps of the squared norm of the exact gradient, for each seed."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.logspace(-1, 1, DIMENSIONS, dtype=torch.float64)
    x = torch.nn.Parameter(2 * torch.randn(seeds, DIMENSIONS, generator=generator, dtype=torch.float64))
    optimizer = cls([x], lr=scale / math.sqrt(steps), **options)
    scheduler = ConstantLR(optimizer, factor=1.0, total_iters=0)
    tie_p_schedule(optimizer, scheduler, num_training_steps=steps)
    total = torch.zeros(seeds, dtype=torch.float64)
    for _ in range(steps):
        with torch.no_grad():
            exact = weights * (x + 1.5 * torch.sin(2 * x))
            total += exact.square().sum(1)
            x.grad = exact + 2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1
        optimizer.step()
        scheduler.step()
    return (total / steps).numpy()


def slope_of(steps: list[int], norms: list[np.ndarray]) -> tuple[float, float]:
    """The slope of the logarithms, and half the width of its 95% confidence interval."""
    slopes = np.polyfit(np.log(steps), np.log(np.stack(norms)), 1)[0]
    return float(slopes.mean()), float(STUDENT[len(slopes) - 1] * slopes.std(ddof=1) / math.sqrt(len(slopes)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, nargs="+", default=[300, 1000, 3000, 10_000, 30_000])
    parser.add_argument("--seeds", type=int, default=16, choices=[number + 1 for number in STUDENT])
    args = parser.parse_args()
    make_folder(parser, "--output_dir", args.output_dir)
    if len(args.steps) < 2:
        parser.error("--steps needs at least 2 numbers, for a slope")
    torch.set_num_threads(1)
    args.steps.sort()
    results = []
    with tqdm(total=len(CONTENDERS) * (len(SCALES) * args.steps[0] + sum(args.steps)), unit="step") as progress:
        for name, (cls, options) in CONTENDERS.items():
            by_scale = {}
            for scale in SCALES:
                by_scale[scale] = float(squared_norms(cls, options, scale, args.steps[0], args.seeds).mean())
                progress.update(args.steps[0])
            best = min(by_scale, key=lambda scale: (math.isnan(by_scale[scale]), by_scale[scale]))
            norms = []
            for steps in args.steps:
                norms.append(squared_norms(cls, options, best, steps, args.seeds))
                progress.update(steps)
            slope, half = slope_of(args.steps, norms)
            results.append(
                {
                    "optimizer": name,
                    "scale": best,
                    "slope": round(slope, 4),
                    "half_width": round(half, 4),
                    "steps": args.steps,
                    "mean": [float(f"{norm.mean():.5g}") for norm in norms],
                    "std": [float(f"{norm.std(ddof=1):.3g}") for norm in norms],
                }
            )
    facts = provenance(Path(__file__).name, ("numpy",))
    (args.output_dir / "results.json").write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")
    lines = [
        "| optimizer | c | slope, with its 95% confidence interval | at T = "
        + " | at T = ".join(map(str, args.steps))
        + " |"
    ]
    lines.append("|---|" + "---|" * (2 + len(args.steps)))
    for result in results:
        values = " | ".join(f"{value:.3g}" for value in result["mean"])
        interval = f"{result['slope']:.3f} ± {result['half_width']:.3f}"
        lines.append(f"| {result['optimizer']} | {result['scale']:g} | {interval} | {values} |")
    (args.output_dir / "results.md").write_text("\n".join(lines) + "\n")
    draw(results, args.output_dir / "results.png")
    print("\n".join(lines))


def draw(results: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for result in results:
        label = f"{result['optimizer']}: {result['slope']:.2f}"
        axes.errorbar(result["steps"], result["mean"], result["std"], marker="o", markersize=3, label=label)
    first = results[0]
    reference = [first["mean"][0] * (steps / first["steps"][0]) ** -0.5 for steps in first["steps"]]
    axes.plot(first["steps"], reference, "k--", label="slope -1/2, the paper's bound")
    axes.set(xscale="log", yscale="log", xlabel="steps T", ylabel="mean squared gradient norm")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(path)


if __name__ == "__main__":
    main()
