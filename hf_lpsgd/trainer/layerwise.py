"""`--optim lpsgd_layerwise` and `lpsgdm_layerwise`: what they cannot train with, and their step in the Trainer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..optim.base import LpOptimizer
from ..optim.layerwise import StepInBackward, step_in_backward
from ..processes import engines_asked_for

if TYPE_CHECKING:
    from transformers import TrainingArguments


def check_layerwise(args: TrainingArguments, asked_by: str, otherwise: str) -> None:
    """Fail where a step in the backward pass would train something else than these arguments ask for.

    Args:
        args: training arguments.
        asked_by: what asks for that step, as `--optim lpsgdm_layerwise`.
        otherwise: what gives the ordinary step, as `use --optim lpsgdm`.

    Raises:
        ValueError: names the argument, says why it cannot be honoured, and what to do.
    """
    for given, why, remedy in _obstacles(args):
        raise ValueError(
            f"{asked_by} cannot train with {given}: each parameter is updated in the backward pass as soon as its "
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
        yield (
            "fp16",
            "loss scaling needs to see all gradients before a step",
            "Load the model in bfloat16, or use --bf16",
        )
    engine = _engine(args)
    if engine is not None:
        yield engine, "the engine gathers the gradients after the backward pass", "Start one plain process"
    if args.world_size > 1:
        yield f"{args.world_size} processes", "they average their gradients first", "Start one process"
    if args.n_gpu > 1:
        yield (
            f"the {args.n_gpu} GPUs of one process",
            "they add up their gradients first",
            "Name one, as in CUDA_VISIBLE_DEVICES=0",
        )
    if args.torch_compile or os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        yield "torch.compile", "a compiled model hands over all gradients at once", "Leave it out"
    if args.auto_find_batch_size:
        yield "--auto_find_batch_size", "a step that runs out of memory stays half made", "Give a batch size"


def _engine(args: TrainingArguments) -> str | None:
    """The engine that the arguments or the launcher ask for."""
    asked = engines_asked_for()
    if args.deepspeed or getattr(args, "deepspeed_plugin", None) is not None or "DEEPSPEED" in asked:
        return "DeepSpeed"
    return "FSDP" if getattr(args, "fsdp", None) or "FSDP" in asked else None


def attach(optimizer: LpOptimizer) -> None:
    """Let the optimizer make its step in the backward pass, from now until `detach`."""
    detach(optimizer)
    step_in_backward(optimizer).by_trainer = True


def detach(optimizer: LpOptimizer) -> None:
    """Go back to the ordinary step."""
    if isinstance(optimizer._in_backward, StepInBackward):
        optimizer._in_backward.remove()
