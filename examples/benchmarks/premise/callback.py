"""A Trainer callback that measures which p the loss asks for."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .geometry import ORDERS, noise_to_signal, probe, promised_decrease, spread


class CurvatureCallback(TrainerCallback):
    """Logs, at a few moments of a training with any optimizer, the p of the largest promised decrease.

    At each moment it computes, on the same batches, one gradient per batch, and on the first batch the products of the
    Hessian with `probes` random vectors. That costs about `len(batches) + 2 * probes` gradients per moment, and the
    memory of a second backward pass. The training itself is not changed: gradients, buffers and random numbers are as
    without it. The loss is the model's own, without label smoothing.

    The log entries are `best_p`, the share of its decrease that p = 2 promises (`decrease_p2`) and that the p in force
    does (`decrease_p`, for LPSGD and LPSGDM), the spread of the gradient's elements and of the Hessian's diagonal
    (root mean square over mean size, 1 where all are alike), the noise of a batch's gradient in units of its mean
    (`gradient_noise`, with two batches or more), and the seconds that it all took. What is not finite is left out.
    They stand in `trainer.state.log_history`, at a step of their own, and in the file of the Trainer's state;
    TensorBoard and the like do not get them. A `best_p` of 1000 stands for sign descent. The shares and the spread of
    the curvature depend on the number of probes, as `gradient_and_curvature` says.

    Args:
        batches: batches as the model takes them, with labels, so that its output has a `loss`.
        moments: how often in a training, at least 2; the first is after the first step, the last after the last.
        probes: random vectors for the estimate of the Hessian's diagonal.
        seed: of these vectors.

    Raises:
        ValueError: no batches, `moments` below 2 or `probes` below 1; before the first step, a model without
            trainable parameters, with parameters that FSDP or ZeRO-3 shards, or compiled by torch.compile; at the
            first moment, a model whose output has no loss.
    """

    def __init__(
        self, batches: Sequence[Mapping[str, Tensor]], moments: int = 10, probes: int = 4, seed: int = 0
    ) -> None:
        batches = list(batches)
        if not batches:
            raise ValueError("CurvatureCallback needs at least 1 batch, with labels")
        if moments < 2 or probes < 1:
            raise ValueError(f"CurvatureCallback needs moments >= 2 and probes >= 1, not {moments} and {probes}")
        self.batches, self.moments, self.probes, self.seed = batches, moments, probes, seed
        self._measured: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        _check(model)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        number = state.global_step - 1
        last = max(1, state.max_steps - 1)
        parts = self.moments - 1
        if number and number * parts // last == (number - 1) * parts // last:
            return
        group = optimizer.param_groups[0]
        self._measured = self.measure(model, group.get("p"))
        control.should_log = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or "learning_rate" not in logs:
            return
        logs.update(self._measured)  # for the callbacks that come later
        if state.log_history and "learning_rate" in state.log_history[-1]:
            state.log_history[-1].update(self._measured)
        self._measured = {}

    def measure(self, model: nn.Module, p: float | None = None) -> dict[str, float]:
        """The log entries of one moment; `p` is the order in force, if there is one."""
        began = time.perf_counter()
        _check(model)
        losses = [partial(_loss, model, batch) for batch in self.batches]
        gradients, curvature = probe(model, losses, self.probes, self.seed)
        shares = promised_decrease(gradients[0], curvature, sorted({*ORDERS, *(() if p is None else (p,))}))
        measured = {"gradient_spread": spread(gradients[0]), "curvature_spread": spread(curvature)}
        if shares:
            measured["best_p"] = max(shares, key=lambda order: shares[order])
            measured["decrease_p2"] = shares[2.0]
            if p is not None:
                measured["decrease_p"] = shares[p]
        if len(gradients) > 1:
            measured["gradient_noise"] = noise_to_signal(gradients)
        measured["curvature_seconds"] = time.perf_counter() - began
        return {name: float(f"{value:.4g}") for name, value in measured.items() if math.isfinite(value)}


def _loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    device = next(model.parameters()).device
    on_device = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    output = model(**on_device)
    loss = output[0] if isinstance(output, tuple) and output else getattr(output, "loss", None)
    if isinstance(output, Mapping):
        loss = output.get("loss")
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ValueError("CurvatureCallback needs a model whose output has a loss: give it batches with labels")
    return loss


def _check(model: nn.Module) -> None:
    params = [param for param in model.parameters() if param.requires_grad]
    if not params:
        raise ValueError("CurvatureCallback needs a model with trainable parameters, and this one has none")
    by_fsdp = any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
    if by_fsdp or any(hasattr(param, "ds_id") or hasattr(param, "device_mesh") for param in params):
        raise ValueError(
            "CurvatureCallback needs whole parameters, and FSDP or ZeRO-3 has sharded these: measure in a run of one "
            "process, or with DDP"
        )
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise ValueError(
            "CurvatureCallback needs second derivatives, which torch.compile does not give: measure without it"
        )
