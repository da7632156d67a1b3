"""Checks of a DeepSpeed config, and of what cannot be combined with a step in the backward pass."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..processes import engines_requested

if TYPE_CHECKING:
    from transformers import TrainingArguments

logger = logging.getLogger(__name__)


def fit_deepspeed_config(args: TrainingArguments, optim: str) -> None:
    """Fail where a DeepSpeed config would train with another optimizer, and keep ours where it offloads."""
    plugin = getattr(args, "deepspeed_plugin", None)
    if plugin is None:
        return
    config = plugin.deepspeed_config
    if "optimizer" in config:
        kind = config["optimizer"].get("type", "an optimizer")
        raise ValueError(
            f"The DeepSpeed config has an `optimizer` section ({kind}), which would train instead of --optim {optim}. "
            "Drop the section."
        )
    offload = config.get("zero_optimization", {}).get("offload_optimizer") or {}
    # Accelerate silently replaces an offloaded optimizer by DeepSpeed's CPU Adam, unless this entry is false.
    if offload.get("device") not in (None, "none") and config.setdefault("zero_force_ds_cpu_optimizer", False):
        raise ValueError(
            "The DeepSpeed config says `zero_force_ds_cpu_optimizer: true`. Then DeepSpeed's CPU Adam would train "
            f"instead of --optim {optim}. Drop the entry, or make it false."
        )
    if "gradient_clipping" not in config:
        logger.warning(
            "The DeepSpeed config has no `gradient_clipping`, so DeepSpeed clips by a default of its own, and "
            f'--max_grad_norm {args.max_grad_norm} has no effect. Add `"gradient_clipping": "auto"` to the config.'
        )


def check_layerwise(args: TrainingArguments, requested_by: str, otherwise: str) -> None:
    """Fail where a step in the backward pass would train something else than these arguments request."""
    for given, why, remedy in _obstacles(args):
        raise ValueError(
            f"{requested_by} cannot train with {given}: each parameter is updated in the backward pass as soon as its "
            f"gradient is complete, and {why}. {remedy}, or {otherwise}."
        )


def _obstacles(args: TrainingArguments) -> Iterator[tuple[str, str, str]]:
    if args.gradient_accumulation_steps > 1:
        given = f"--gradient_accumulation_steps {args.gradient_accumulation_steps}"
        yield given, "the gradient of one batch is freed before that of the next is added", "Leave it at 1"
    if args.max_grad_norm:
        given = f"--max_grad_norm {args.max_grad_norm:g}"
        remedy = "Add --max_grad_norm 0 (grad_rms=auto bounds the step of each element anyway)"
        yield given, "clipping needs the norm of all gradients first", remedy
    if args.fp16 or "fp16" in (getattr(args, "mixed_precision", ""), os.environ.get("ACCELERATE_MIXED_PRECISION", "")):
        yield "fp16", "loss scaling needs all gradients before a step", "Load the model in bfloat16, or use --bf16"
    remedy = "Use FSDP2 (fsdp_version: 2) without offload, start one plain process"
    for engine in ("DeepSpeed", "FSDP"):
        argument, plugin = (getattr(args, f"{engine.lower()}{ending}", None) for ending in ("", "_plugin"))
        is_requested = argument or plugin is not None or engine.upper() in engines_requested()
        if is_requested and not (engine == "FSDP" and _is_fsdp2(args)):
            yield engine, "the engine gathers the gradients after the backward pass", remedy
    if args.world_size > 1 and not _is_fsdp2(args):
        yield f"{args.world_size} processes", "they average their gradients first", remedy
    if args.n_gpu > 1:
        given = f"the {args.n_gpu} GPUs of one process"
        yield given, "they add up their gradients first", "Name one, as in CUDA_VISIBLE_DEVICES=0"
    if args.torch_compile or os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        yield "torch.compile", "a compiled model hands over all gradients at once", "Leave it out"
    if args.auto_find_batch_size:
        yield "--auto_find_batch_size", "a step that runs out of memory stays half made", "Give a batch size"


def _is_fsdp2(args: TrainingArguments) -> bool:
    """Say whether FSDP2 was requested, which hands over averaged gradients; without offload, which may not wait."""
    given, is_launched = getattr(args, "fsdp_plugin_args", None) or {}, "FSDP" in engines_requested()
    version = given.get("fsdp_version", os.environ.get("FSDP_VERSION") if is_launched else None)
    offload = given.get("cpu_offload", os.environ.get("FSDP_OFFLOAD_PARAMS") if is_launched else None)
    return str(version) == "2" and str(offload).lower() not in ("true", "1")
