"""What `--optim lpsgd_layerwise` and `lpsgdm_layerwise` cannot train with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..processes import engines_requested

if TYPE_CHECKING:
    from transformers import TrainingArguments


def check_layerwise(args: TrainingArguments, requested_by: str, otherwise: str) -> None:
    """Fail where a step in the backward pass would train something else than these arguments request.

    The error names the argument, and `requested_by`, which requests that step, and how to get the ordinary one,
    `otherwise`: as `--optim lpsgdm_layerwise`, and `use --optim lpsgdm`.
    """
    for given, why, remedy in _obstacles(args):
        raise ValueError(
            f"{requested_by} cannot train with {given}: each parameter is updated in the backward pass as soon as its "
            f"gradient is complete, and {why}. {remedy}, or {otherwise}."
        )


def _obstacles(args: TrainingArguments) -> Iterator[tuple[str, str, str]]:
    if args.gradient_accumulation_steps > 1:
        yield (
            f"--gradient_accumulation_steps {args.gradient_accumulation_steps}",
            "the gradient of one batch is freed before that of the next is added",
            "Leave it at 1 (with no gradients held there may be room for a larger --per_device_train_batch_size)",
        )
    if args.max_grad_norm:
        yield (
            f"--max_grad_norm {args.max_grad_norm:g}",
            "clipping needs the norm of all gradients first",
            "Add --max_grad_norm 0 (with grad_rms=auto no element moves by more than the learning rate anyway)",
        )
    if args.fp16 or "fp16" in (getattr(args, "mixed_precision", ""), os.environ.get("ACCELERATE_MIXED_PRECISION", "")):
        yield "fp16", "loss scaling needs all gradients before a step", "Load the model in bfloat16, or use --bf16"
    for engine in ("DeepSpeed", "FSDP"):
        argument, plugin = (getattr(args, f"{engine.lower()}{ending}", None) for ending in ("", "_plugin"))
        if argument or plugin is not None or engine.upper() in engines_requested():
            yield engine, "the engine gathers the gradients after the backward pass", "Start one plain process"
    if args.world_size > 1:
        yield f"{args.world_size} processes", "they average their gradients first", "Start one process"
    if args.n_gpu > 1:
        given = f"the {args.n_gpu} GPUs of one process"
        yield given, "they add up their gradients first", "Name one, as in CUDA_VISIBLE_DEVICES=0"
    if args.torch_compile or os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        yield "torch.compile", "a compiled model hands over all gradients at once", "Leave it out"
    if args.auto_find_batch_size:
        yield "--auto_find_batch_size", "a step that runs out of memory stays half made", "Give a batch size"
