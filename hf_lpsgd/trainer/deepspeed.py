"""Checks of a DeepSpeed config that is to train with LPSGD or LPSGDM."""

from __future__ import annotations

import logging

from transformers.training_args import TrainingArguments

from .optim_args import name_of

logger = logging.getLogger(__name__)


def fit_deepspeed_config(args: TrainingArguments) -> None:
    """Fail where a DeepSpeed config would train with another optimizer, and keep ours where it offloads."""
    plugin = getattr(args, "deepspeed_plugin", None)
    if plugin is None:
        return
    config, optim = plugin.deepspeed_config, name_of(args.optim)
    if "optimizer" in config:
        kind = config["optimizer"].get("type", "an optimizer")
        raise ValueError(
            f"The DeepSpeed config has an `optimizer` section ({kind}), which would train instead of --optim {optim}. "
            f"Drop the section from the config: --optim {optim} works with every ZeRO stage."
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
            "The DeepSpeed config has no `gradient_clipping`, so DeepSpeed clips by a default of its own (1.0 in new "
            'versions) and --max_grad_norm %s has no effect. Add `"gradient_clipping": "auto"` to the config.',
            args.max_grad_norm,
        )
