"""How much memory a whole training step takes with each optimizer: forward pass, backward pass and step.

    python examples/benchmarks/peak_memory.py --output_dir memory

Trains models made from configs on random data, with weights in float32 and in bfloat16. Tells the bytes per parameter
of the weights, of the gradients that are held at a time, of the optimizer's state and of the step's temporaries, and
the peak of the whole step, as torch's allocator counts them. AdamW in 8 bits is measured where bitsandbytes is
installed. Writes results.json, with the command, the commit, the versions and the device, results.md and results.png.
"""

import argparse
import gc
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from output_folder import make_folder
from provenance import provenance
from torch.optim import SGD, AdamW, Optimizer
from torch.profiler import ProfilerActivity, profile
from tqdm.auto import tqdm
from transformers import (
    Adafactor,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from hf_lpsgd import LPSGD, LPSGDM, step_in_backward


def _of_package(module: str, name: str, params: Any, **options: Any) -> Optimizer:
    # Imported only here: all else can be measured without the package.
    optimizer: Optimizer = getattr(import_module(module), name)(params, **options)
    return optimizer


# As `--optim` sets them; the rate is such that nothing runs off in a few steps.
AUTO: dict[str, Any] = {"lr": 1e-6, "grad_rms": "auto"}
FLOAT8: dict[str, Any] = {"momentum_dtype": "float8", "rounding": "stochastic"}
OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], bool]] = {
    "AdamW": (partial(AdamW, lr=1e-6), False),
    "AdamW, fused": (partial(AdamW, lr=1e-6, fused=True), False),
    "Lion": (partial(_of_package, "lion_pytorch", "Lion", lr=1e-6), False),
    "SGD, momentum": (partial(SGD, lr=1e-6, momentum=0.9), False),
    "Adafactor": (partial(Adafactor, lr=1e-6, scale_parameter=False, relative_step=False), False),
    "LPSGDM": (partial(LPSGDM, **AUTO), False),
    "LPSGDM, bfloat16 momentum": (partial(LPSGDM, momentum_dtype="bfloat16", **AUTO), False),
    "LPSGDM, float8 momentum": (partial(LPSGDM, **FLOAT8, **AUTO), False),
    "LPSGD": (partial(LPSGD, **AUTO), False),
    "LPSGDM, layerwise": (partial(LPSGDM, **AUTO), True),
    "LPSGDM, layerwise, bfloat16 momentum": (partial(LPSGDM, momentum_dtype="bfloat16", **AUTO), True),
    "LPSGDM, layerwise, float8 momentum": (partial(LPSGDM, **FLOAT8, **AUTO), True),
    "LPSGD, layerwise": (partial(LPSGD, **AUTO), True),
}
if find_spec("bitsandbytes"):
    OPTIMIZERS["AdamW, 8-bit"] = partial(_of_package, "bitsandbytes.optim", "AdamW8bit", lr=1e-6), False


LLAMA: dict[str, Any] = {"vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048}
LLAMA |= {"num_hidden_layers": 12, "num_attention_heads": 12, "tie_word_embeddings": False}
VIT: dict[str, Any] = {"num_labels": 1000}


def vit_b_16() -> tuple[Any, dict[str, torch.Tensor]]:
    """ViT-B/16 and an image."""
    inputs = {"pixel_values": torch.randn(1, 3, 224, 224), "labels": torch.randint(0, 1000, (1,))}
    return ViTForImageClassification(ViTConfig(**VIT)), inputs


def llama_134m() -> tuple[Any, dict[str, torch.Tensor]]:
    """A Llama of 134 million parameters, its embedding and its output layer apart, and a text of 128 tokens."""
    return LlamaForCausalLM(LlamaConfig(**LLAMA)), _tokens(32000)


def gpt2() -> tuple[Any, dict[str, torch.Tensor]]:
    """GPT-2, whose embedding is its output layer too, and a text of 128 tokens."""
    return GPT2LMHeadModel(GPT2Config()), _tokens(50257)


def _tokens(vocabulary: int) -> dict[str, torch.Tensor]:
    tokens = torch.randint(0, vocabulary, (1, 128))
    return {"input_ids": tokens, "labels": tokens}


MODELS = {"vit_b_16": vit_b_16, "llama_134m": llama_134m, "gpt2": gpt2}


def peak_of(step: Callable[[], object], device: torch.device) -> int:
    """The most bytes that torch had allocated on `device` while `step()` ran, beyond what it had before."""
    return _watched(step, device)[0]


def _watched(step: Callable[[], object], device: torch.device) -> tuple[int, int]:
    """The most bytes that were allocated while `step()` ran, and those at its end, beyond what there was before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before, torch.cuda.memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler prints two lines each time
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak, held


def measure(model_name: str, optimizer_name: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Bytes of each kind for one optimizer and one model."""
    torch.manual_seed(0)
    model, inputs = MODELS[model_name]()
    model = model.to(device, dtype).train()
    inputs = {key: value.to(device, dtype if value.is_floating_point() else None) for key, value in inputs.items()}
    params = list(model.parameters())
    make, layerwise = OPTIMIZERS[optimizer_name]
    held: list[int] = []
    hooks = [
        param.register_post_accumulate_grad_hook(
            lambda _: held.append(sum(other.grad.nbytes for other in params if other.grad is not None))
        )
        for param in params
    ]
    optimizer = make(params)
    if layerwise:
        step_in_backward(optimizer)  # type: ignore[arg-type]

    def train() -> None:
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(2):  # the first makes the state
        train()
    state = sum(
        value.nbytes for of in optimizer.state.values() for value in of.values() if isinstance(value, torch.Tensor)
    )
    loss: list[torch.Tensor] = []
    activations = _watched(lambda: loss.append(model(**inputs).loss), device)[1]
    loss.clear()
    held.clear()
    peak = peak_of(train, device)
    for param in params:
        param.grad = torch.ones_like(param)
    temporary = peak_of(optimizer.step, device)
    for hook in hooks:  # which hold the parameters
        hook.remove()
    return {
        "parameters": sum(param.numel() for param in params),
        "weights": sum(param.nbytes for param in params),
        "gradients": max(held),
        "state": state,
        "temporary": temporary,
        "activations": activations,
        "largest_gradient": max(param.nbytes for param in params),
        "step": peak,
    }


def table(results: dict[str, dict[str, dict[str, Any]]]) -> Iterator[str]:
    """Per model and dtype, the bytes per parameter by kind, and the peaks in MB."""
    for title, of_optimizers in results.items():
        first = next(iter(of_optimizers.values()))
        yield f"## {title}"
        yield ""
        yield f"{first['parameters']:,} parameters, {first['activations'] / 1e6:,.0f} MB of activations"
        yield ""
        yield (
            "| optimizer | weights, bytes per parameter | gradients | state | temporary | all of them | "
            "peak of a whole step, MB | of it, beyond weights, state and activations |"
        )
        yield "|---|" + "---:|" * 7
        for name, of in of_optimizers.items():
            kinds = [of[kind] / of["parameters"] for kind in ("weights", "gradients", "state", "temporary")]
            peak = of["weights"] + of["state"] + of["step"]
            beyond = of["step"] - of["activations"]
            cells = [*(f"{kind:.2f}" for kind in (*kinds, sum(kinds))), f"{peak / 1e6:,.0f}", f"{beyond / 1e6:,.0f}"]
            yield f"| {name} | " + " | ".join(cells) + " |"
        yield ""


def draw(results: dict[str, dict[str, dict[str, Any]]], device: str, path: Path) -> None:
    """Stacked bars of the bytes per parameter, a panel per model and dtype."""
    from matplotlib.figure import Figure

    kinds = {"weights": "#8a8a8a", "gradients": "#e6a03c", "state": "#3b6fb6", "temporary": "#c0392b"}
    figure = Figure(figsize=(8, 0.7 + 2.8 * len(results)), dpi=80, layout="constrained")
    figure.suptitle(f"Bytes per parameter, {device}", fontsize=10)
    for axes, (title, of_optimizers) in zip(
        figure.subplots(len(results), squeeze=False)[:, 0], results.items(), strict=True
    ):
        names = list(of_optimizers)
        left = [0.0] * len(names)
        for kind, color in kinds.items():
            widths = [of[kind] / of["parameters"] for of in of_optimizers.values()]
            axes.barh(names, widths, left=left, color=color, label=kind)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        for place, total in enumerate(left):
            axes.text(total, place, f" {total:.1f}", va="center", fontsize=7)
        axes.invert_yaxis()
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=7)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    best = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the results")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=best, help="default here: %(default)s")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="default: all")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS), help="default: all")
    args = parser.parse_args()
    if args.device == "cuda" and best != "cuda":
        parser.error("--device cuda: torch sees no GPU here; use --device cpu")
    make_folder(parser, "--output_dir", args.output_dir)
    device = torch.device(args.device)
    facts = provenance(Path(__file__).name, ("transformers", "lion-pytorch", "bitsandbytes"), device)
    cases = [(model, dtype, name) for model in args.models for dtype in args.dtypes for name in args.optimizers]
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for model, dtype, name in tqdm(cases, unit="optimizer"):
        found = measure(model, name, getattr(torch, dtype), device)
        results.setdefault(f"{model}, {dtype}", {})[name] = found
        gc.collect()
    (args.output_dir / "results.json").write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")
    text = f"{facts['device']}\n\n" + "\n".join(table(results)) + "\n"
    (args.output_dir / "results.md").write_text(text)
    draw(results, facts["device"], args.output_dir / "results.png")
    print(text)


if __name__ == "__main__":
    main()
