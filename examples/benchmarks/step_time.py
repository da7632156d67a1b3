"""How long the step of an optimizer takes, beside torch's own, Lion, and a copy of the same bytes.

    python examples/benchmarks/step_time.py --output_dir examples/benchmarks/results/step_time_cpu

Every optimizer updates the same tensors, and those of one kind share their state. All take turns, step by step, so
that what else the machine does meets all alike; medians are compared. On a GPU the host runs ahead of the device, as
it does in training, and the time is the device's; the host's stands beside it, for gradients whose addresses stay.
Writes results.json (with every time, the command, the commit, the versions and the device), results.md and
results.png.

Then it measures a whole step of the Trainer with lpsgdm and with sgd (see trainer_step.py).
"""

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from types import SimpleNamespace
from typing import Any

import psutil
import torch
from output_folder import make_folder
from parameter_shapes import SHAPES
from peak_memory import peak_of
from provenance import provenance
from torch.optim import SGD, AdamW, Optimizer
from tqdm.auto import tqdm

from hf_lpsgd import LPSGD, LPSGDM, tie_p_schedule
from hf_lpsgd.optim.kernels import cpu
from hf_lpsgd.optim.kernels.choice import why_not_fused

COPY = "copy"
# Compared with these: the first is the same work, the others are what people use.
YARDSTICKS = ("SGD, momentum, fused", "AdamW, fused", "AdamW, foreach")
# A rate that changes nothing that is not rounded away soon, so that no value runs off in thousands of steps.
RATE = 1e-7
MOST_COPIED_AT_ONCE = 2**29
# About 50 ms of the GPU's clock: so far ahead the host gets before a step is timed.
GPU_HEAD_START_CYCLES = 100_000_000

Parameters = list[torch.nn.Parameter]


@dataclass(frozen=True)
class Contender:
    """An optimizer in one implementation.

    Attributes:
        name: what tables call it.
        make: makes it, of parameters.
    """

    name: str
    make: Callable[[Parameters], Optimizer]


def large_state(optimizer: Optimizer) -> Iterator[tuple[torch.Tensor, str, torch.Tensor]]:
    """The tensors of a parameter's shape that an optimizer keeps, with the parameter and the name."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape and value.dim() > 0:
                yield parameter, key, value


def bytes_moved(parameters: Parameters, optimizer: Optimizer) -> int:
    """The least that a step must read and write: parameter and state both, and the gradient read."""
    return sum(3 * p.nbytes for p in parameters) + sum(2 * value.nbytes for *_, value in large_state(optimizer))


def contenders(device: torch.device, dtype: torch.dtype) -> list[Contender]:
    """All optimizers, each in every implementation that there is on `device`."""
    foreach, fused, triton = ({name: True} for name in ("foreach", "fused", "triton"))
    ours = {"default": {}, "single": {"foreach": False}, "foreach": foreach}
    if why_not_fused(device) is None:
        ours["fused"] = fused
    torchs = {"foreach": foreach, "fused": fused}
    lions = {"foreach": foreach, **({"triton": triton} if device.type == "cuda" else {})}
    float8 = {"momentum_dtype": "float8", "rounding": "stochastic"}
    other = "float32" if dtype == torch.bfloat16 else "bfloat16"
    rounded = (
        {"rounding": "stochastic"} if dtype != torch.float32 else {"momentum_dtype": other, "rounding": "stochastic"}
    )
    kinds: tuple[tuple[str, Callable[..., Optimizer], dict[str, dict[str, Any]]], ...] = (
        ("LPSGDM", LPSGDM, ours),
        ("LPSGD", LPSGD, ours),
        ("LPSGDM, grad_rms", partial(LPSGDM, grad_rms=1e-3), {"given": {}}),
        ("LPSGDM, grad_rms", _always_measuring, {"measured": {}}),
        ("LPSGDM", LPSGDM, {f"{other} momentum": {"momentum_dtype": other}}),
        ("LPSGDM, grad_rms", partial(LPSGDM, grad_rms=1e-3), {"float8 momentum": float8}),
        ("LPSGDM", LPSGDM, {f"{'bfloat16 momentum, ' * (dtype == torch.float32)}stochastic rounding": rounded}),
        ("LPSGD", LPSGD, {"stochastic rounding": {"rounding": "stochastic"}} if dtype != torch.float32 else {}),
        ("SGD, momentum", partial(SGD, momentum=0.9), torchs),
        ("AdamW", AdamW, torchs),
        ("Lion (optimi)", _lion, lions),
    )
    return [
        Contender(f"{name}, {how}", partial(kind, lr=RATE, **options))
        for name, kind, ways in kinds
        for how, options in ways.items()
    ]


def _lion(parameters: Parameters, **options: Any) -> Optimizer:
    from optimi import Lion  # only here: all else can be measured without it

    return Lion(parameters, **options)


def _always_measuring(parameters: Parameters, **options: Any) -> Optimizer:
    optimizer = LPSGDM(parameters, grad_rms="auto", **options)
    # Of a warm-up all steps are measured, and this one never ends.
    tie_p_schedule(optimizer, SimpleNamespace(last_epoch=0), "constant", num_warmup_steps=sys.maxsize)
    return optimizer


def make_parameters(shapes: list[tuple[int, ...]], device: torch.device, dtype: torch.dtype) -> Parameters:
    """Random values, with gradients a thousandth in size."""
    generator = torch.Generator(device).manual_seed(0)
    parameters = []
    for shape in shapes:
        values = torch.randn(shape, generator=generator, device=device).to(dtype)
        parameter = torch.nn.Parameter(values)
        parameter.grad = (torch.randn(shape, generator=generator, device=device) * 1e-3).to(dtype)
        parameters.append(parameter)
    return parameters


def share_state(optimizer: Optimizer, other: Optimizer) -> None:
    """Let `optimizer` keep its large tensors in those of `other`, of the same kind."""
    for parameter, key, value in large_state(optimizer):
        if other.state[parameter][key].dtype == value.dtype:
            optimizer.state[parameter][key] = other.state[parameter][key]


def copier(count: int, device: torch.device) -> Callable[[], None]:
    """A function that moves `count` bytes, half of them reads and half writes."""
    pieces = max(1, math.ceil(count / 2 / MOST_COPIED_AT_ONCE))
    source = torch.randint(0, 256, (count // 2 // pieces,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        for _ in range(pieces):
            target.copy_(source)

    return copy


def timed(step: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Seconds of one call on the device, and on the host."""
    if device.type != "cuda":
        begun = time.perf_counter()
        step()
        seconds = time.perf_counter() - begun
        return seconds, seconds
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begun = time.perf_counter()
    step()
    host = time.perf_counter() - begun
    torch.cuda.synchronize(device)
    torch.cuda._sleep(GPU_HEAD_START_CYCLES)
    start.record()
    step()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1e3, host


def needed_bytes(shapes: list[tuple[int, ...]], device: torch.device, dtype: torch.dtype) -> int:
    """About what is taken by parameters, gradients, all states, a copy, and the temporaries of foreach AdamW."""
    count = sum(math.prod(shape) for shape in shapes)
    return count * dtype.itemsize * (2 + 1 + 2 + 1 + 1 + 3) + 2 * MOST_COPIED_AT_ONCE


def free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def measure(shapes: list[tuple[int, ...]], device: torch.device, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    parameters = make_parameters(shapes, device, dtype)
    steps: dict[str, Callable[[], object]] = {}
    peaks: dict[str, int] = {}
    moved: dict[str, int] = {}
    first_of_kind: dict[type[Optimizer], Optimizer] = {}
    for contender in contenders(device, dtype):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # optimi's, of its own foreach
            optimizer = contender.make(parameters)
        optimizer.step()
        share_state(optimizer, first_of_kind.setdefault(type(optimizer), optimizer))
        optimizer.step()
        peaks[contender.name] = peak_of(optimizer.step, device)
        steps[contender.name] = optimizer.step
        moved[contender.name] = bytes_moved(parameters, optimizer)
    moved[COPY] = moved["LPSGDM, default"]
    steps[COPY] = copier(moved[COPY], device)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for repeat in tqdm(range(repeats + 3), unit="round"):
        for name, step in steps.items():
            seconds = timed(step, device)
            if repeat >= 3:
                times[name].append(seconds)
    return {
        "parameters": sum(p.numel() for p in parameters),
        "tensors": len(parameters),
        "contenders": {
            name: {
                "median_seconds": median(device_seconds for device_seconds, _ in pairs),
                "median_host_seconds": median(host_seconds for _, host_seconds in pairs),
                "bytes_moved": moved[name],
                "peak_extra_bytes": peaks.get(name),
                "seconds": [device_seconds for device_seconds, _ in pairs],
            }
            for name, pairs in times.items()
        },
    }


def rows(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The table of one set of shapes, its head first."""
    of = result["contenders"]
    copied_per_second = of[COPY]["bytes_moved"] / of[COPY]["median_seconds"]
    # Where the host does the work there is no other time to tell.
    runs_ahead = any(values["median_host_seconds"] != values["median_seconds"] for values in of.values())
    host = ("host ms",) if runs_ahead else ()
    yield (
        "optimizer",
        "ms",
        "quartiles",
        *host,
        "GB per second",
        "of copy rate",
        *(f"/ {name}" for name in YARDSTICKS),
        "peak extra MB",
    )
    for name, values in of.items():
        seconds, peak = values["median_seconds"], values["peak_extra_bytes"]
        low, high = quartiles(values["seconds"])
        yield (
            name,
            f"{seconds * 1e3:.2f}",
            f"{low * 1e3:.2f} to {high * 1e3:.2f}",
            *([f"{values['median_host_seconds'] * 1e3:.2f}"] if runs_ahead else []),
            f"{values['bytes_moved'] / seconds / 1e9:.1f}",
            f"{values['bytes_moved'] / seconds / copied_per_second:.0%}",
            *(f"{seconds / of[yardstick]['median_seconds']:.2f}" for yardstick in YARDSTICKS),
            "" if peak is None else f"{peak / 1e6:.1f}",
        )


def quartiles(seconds: list[float]) -> tuple[float, float]:
    """The values that a quarter of all stay below and above."""
    low, _, high = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    return low, high


def table(results: dict[str, Any]) -> str:
    lines = []
    for name, result in results.items():
        head, *body = rows(result)
        lines += [f"{name}: {result['parameters']:,} parameters in {result['tensors']} tensors", ""]
        lines += [" | ".join(("", *cells, "")).strip() for cells in (head, ("---",) * len(head), *body)]
        lines.append("")
    return "\n".join(lines)


def plot(results: dict[str, Any], title: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.6 + 3.4 * len(results)), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=10)
    for axes, (name, result) in zip(figure.subplots(len(results), squeeze=False)[:, 0], results.items(), strict=True):
        values = {n: v["median_seconds"] * 1e3 for n, v in result["contenders"].items() if n != COPY}
        colors = ["#c0392b" if "LPSGD" in contender else "#8a8a8a" for contender in values]
        ends = [quartiles(result["contenders"][contender]["seconds"]) for contender in values]
        spread = [(mid - low * 1e3, high * 1e3 - mid) for mid, (low, high) in zip(values.values(), ends, strict=True)]
        bars = axes.barh(
            list(values), list(values.values()), color=colors, xerr=list(zip(*spread, strict=True)), ecolor="#222222"
        )
        axes.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
        copy = result["contenders"][COPY]["median_seconds"] * 1e3
        axes.axvline(copy, color="#3b6fb6", linestyle="--", label=f"a copy of LPSGDM's bytes, {copy:.3g} ms")
        axes.invert_yaxis()
        axes.tick_params(labelsize=8)
        axes.set_title(f"{name}, {result['parameters'] / 1e6:,.1f} million parameters", fontsize=9)
        axes.set_xlabel("ms per step (median and quartiles)", fontsize=8)
        axes.legend(frameon=False, fontsize=8, loc="upper right")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    best = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the results")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=best, help="default here: %(default)s")
    parser.add_argument(
        "--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="of whose parameters; default: all that fit"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="default: %(default)s"
    )
    parser.add_argument("--repeats", type=int, default=50, help="rounds, a step of each in each; default: %(default)s")
    parser.add_argument(
        "--trainer_steps", type=int, default=300, help="of each Trainer, 0 for none (default: %(default)s)"
    )
    args = parser.parse_args()
    if args.device == "cuda" and best != "cuda":
        parser.error("--device cuda: torch sees no GPU here; use --device cpu")
    if args.repeats < 1 or args.trainer_steps < 0:
        parser.error("--repeats must be at least 1 and --trainer_steps at least 0")
    make_folder(parser, "--output_dir", args.output_dir)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    origin = provenance("step_time.py", ("torch-optimi", "triton", "transformers", "accelerate"), device)
    origin["cpu_kernel"] = cpu.instructions()
    results = {}
    for name in args.shapes:
        shapes = SHAPES[name]()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        needed, free = needed_bytes(shapes, device, dtype), free_bytes(device)
        if needed > free:
            print(f"{name}: left out, since it takes about {needed / 1e9:.0f} GB and {free / 1e9:.0f} GB are free")
            continue
        results[name] = measure(shapes, device, dtype, args.repeats)
    settings = {"dtype": args.dtype, "repeats": args.repeats, "benchmarked_on": str(device)}
    output = {**origin, **settings, "results": results}
    text = f"{origin['device']}, {args.dtype}\n\n{table(results)}\n"
    if args.trainer_steps:
        import trainer_step

        output["trainer"] = trainer_step.measure(args.trainer_steps, device)
        text += trainer_step.table(output["trainer"])
    (args.output_dir / "results.json").write_text(json.dumps(output, indent=1) + "\n")
    (args.output_dir / "results.md").write_text(text)
    if results:
        plot(results, f"{origin['device']}, {args.dtype}", args.output_dir / "results.png")
    print(text)
    print(f"written: {args.output_dir}/results.json, results.md and results.png")


if __name__ == "__main__":
    main()
