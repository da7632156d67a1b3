"""Trains a small transformer with fully_shard, saves and loads it, and writes what each process saw.

    torchrun --standalone --nproc_per_node N fsdp2_worker.py train|resume FOLDER

`train` runs all cases and leaves sharded checkpoints of a run at half-way in FOLDER; `resume` goes on from those.
"""

import itertools
import sys
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from hf_lpsgd.optim import LPSGD, LPSGDM, measurement
from hf_lpsgd.optim.kernels.rounding import FLOAT8, from_float8
from hf_lpsgd.optim.layerwise import step_in_backward
from hf_lpsgd.schedules import tie_p_schedule

STEPS, HALF, P_MAX, BATCH, LENGTH, TOKENS = 8, 3, 20.0, 12, 5, 11
OPTIMIZERS = {"lpsgd": LPSGD, "lpsgdm": LPSGDM}
# The default is the fused one, where hf_lpsgd was installed with it.
FLOAT8_OPTIONS = {"momentum_dtype": "float8", "grad_rms": "auto", "rounding": "stochastic"}
IMPLEMENTATIONS = {
    "single": {"foreach": False},
    "foreach": {"foreach": True},
    "default": {},
    "measuring": {"grad_rms": "auto"},
    "bfloat16 momentum": {"momentum_dtype": "bfloat16"},
    "float8 momentum": FLOAT8_OPTIONS,
    "layerwise, measuring": {"grad_rms": "auto"},
    "layerwise, float8 momentum": FLOAT8_OPTIONS,
}
# Of the updates that are measured, a checkpoint at half-way holds some.
MEASURED_UPDATES = HALF + 2
CASES = [
    (name, implementation, dtype)
    for name, implementation, dtype in itertools.product(OPTIMIZERS, IMPLEMENTATIONS, (torch.float32, torch.float64))
    if not implementation.endswith("momentum") or (name, dtype) == ("lpsgdm", torch.float32)
    if not implementation.startswith("layerwise") or dtype == torch.float32
]
RESUMED = [case for case in CASES if case[2] is torch.float32]
HYBRID = ("lpsgdm", "measuring", torch.float32)


class Block(nn.Module):
    def __init__(self, width, hidden, heads):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x):
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norms[0](x)).chunk(3, dim=-1)
        )
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class TinyTransformer(nn.Module):
    """Its sizes divide by neither 2 nor 3, and of `first` (one row) all processes but one hold nothing."""

    def __init__(self, width=10, hidden=13, heads=2, depth=2):
        super().__init__()
        self.embed = nn.Embedding(TOKENS, width)
        self.first = nn.Parameter(torch.randn(1, width))
        self.blocks = nn.ModuleList(Block(width, hidden, heads) for _ in range(depth))
        self.head = nn.Linear(width, TOKENS)

    def forward(self, tokens):
        x = self.embed(tokens)
        x = torch.cat([self.first.expand(len(x), 1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 1:])


class Run:
    """A model, its optimizer with p tied to an LR scheduler, and the steps made so far."""

    def __init__(self, name, implementation, dtype, *, sharded, seed=0, mesh=None):
        torch.manual_seed(seed)
        self.model = TinyTransformer().to(dtype)
        if sharded:
            for block in self.model.blocks:
                fully_shard(block, mesh=mesh)
            fully_shard(self.model, mesh=mesh)
        lr = 2e-3
        self.optimizer = OPTIMIZERS[name](
            self.model.parameters(), lr=lr, p_max=P_MAX, weight_decay=0.1, **IMPLEMENTATIONS[implementation]
        )
        self.held, self.params = 0, list(self.model.parameters())
        for param in self.params:
            param.register_post_accumulate_grad_hook(self.count_gradients)
        if implementation.startswith("layerwise"):
            step_in_backward(self.optimizer)
        self.scheduler = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1.0, 0.1, STEPS)
        tie_p_schedule(self.optimizer, self.scheduler, "cosine", num_training_steps=STEPS)
        self.ps = []

    def count_gradients(self, _):
        self.held = max(self.held, sum(param.grad is not None for param in self.params))

    def train(self, start, stop):
        """Make the steps from `start` to `stop`; each process takes its part of the same global batch."""
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        generator = torch.Generator().manual_seed(1)
        batches = torch.randint(0, TOKENS, (STEPS, BATCH, LENGTH + 1), generator=generator)
        for batch in batches[start:stop]:
            own = batch.chunk(world)[rank]
            logits = self.model(own[:, :-1])
            with patch.object(measurement, "FEWEST_UPDATES", MEASURED_UPDATES):
                F.cross_entropy(logits.flatten(0, 1), own[:, 1:].flatten()).backward()
                self.optimizer.step()
            self.ps.append(self.optimizer.param_groups[0]["p"])
            self.scheduler.step()
            self.optimizer.zero_grad()
        return self

    def state(self):
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "scheduler": self.scheduler.state_dict()}

    def save(self, folder):
        dcp.save(self.state(), checkpoint_id=folder)

    def load(self, folder):
        state = self.state()
        dcp.load(state, checkpoint_id=folder)
        set_state_dict(
            self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )
        self.scheduler.load_state_dict(state["scheduler"])
        self.p_loaded = self.optimizer.param_groups[0]["p"]
        return self

    def buffers(self):
        return {
            name: self.optimizer.state[param]["momentum_buffer"]
            for name, param in self.model.named_parameters()
            if "momentum_buffer" in self.optimizer.state[param]
        }

    def values(self, buffer):
        unit = self.optimizer.param_groups[0].get("momentum_unit")
        return from_float8(buffer, unit, torch.float32) if buffer.dtype == FLOAT8 else buffer

    def result(self):
        weights, buffers = dict(self.model.named_parameters()), self.buffers()
        return {
            "grad_rms": self.optimizer.param_groups[0]["grad_rms"],
            "weights": {name: whole(tensor) for name, tensor in weights.items()},
            "buffers": {name: self.values(whole(tensor)) for name, tensor in buffers.items()},
            "buffer_dtypes": {tensor.dtype for tensor in buffers.values()},
            "placements": {name: placements_of(tensor) for name, tensor in weights.items()},
            "buffer_placements": {name: placements_of(tensor) for name, tensor in buffers.items()},
            "own_rows": {name: len(local(tensor)) for name, tensor in weights.items()},
            "own_buffer_rows": {name: len(local(tensor)) for name, tensor in buffers.items()},
            "gradients_held": self.held,
            "ps": self.ps,
            "p_loaded": getattr(self, "p_loaded", None),
            "lr": self.optimizer.param_groups[0]["lr"],
        }


def local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def placements_of(tensor):
    return str(tensor.placements) if isinstance(tensor, DTensor) else None


def case_name(name, implementation, dtype):
    return f"{name}-{implementation}-{str(dtype).removeprefix('torch.')}"


def checkpoint_of(folder, case):
    return Path(folder) / f"half-{case_name(*case)}"


PLACEMENTS = {"replicate": Replicate(), "rows": Shard(0), "columns": Shard(1)}
GRADIENT_PLACEMENTS = {**PLACEMENTS, "partial": Partial()}
SHAPE = (3, 5)


def gradient_of_step(step):
    """A whole gradient, and the two parts that it is the sum of."""
    parts = torch.randn(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    return parts.sum(0), parts


def placed_gradient(step, placement, mesh):
    gradient, parts = gradient_of_step(step)
    if placement.is_partial():
        return DTensor.from_local(parts[mesh.get_local_rank()], mesh, [placement])
    return distribute_tensor(gradient, mesh, [placement])


def steps_with_placed_gradients(mesh, param_placement, grad_placement):
    """A parameter after three steps, with gradients placed otherwise than it, or (mesh None) plain ones."""
    start = torch.ones(SHAPE, dtype=torch.float64)
    param = nn.Parameter(start if mesh is None else distribute_tensor(start, mesh, [param_placement]))
    optimizer = LPSGDM([param], lr=0.1, p_max=6.0)
    for step in range(3):
        param.grad = gradient_of_step(step)[0] if mesh is None else placed_gradient(step, grad_placement, mesh)
        optimizer.step()
    return whole(param), placements_of(param), placements_of(optimizer.state[param]["momentum_buffer"])


def train_all(folder):
    results = {}
    for case in CASES:
        results[case_name(*case)] = Run(*case, sharded=True).train(0, STEPS).result()
    for case in RESUMED:
        Run(*case, sharded=True).train(0, HALF).save(checkpoint_of(folder, case))
    results["resumed"] = resume_all(folder)
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    results["hybrid"] = Run(*HYBRID, sharded=True, mesh=mesh).train(0, STEPS).result()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    results["placed"] = {
        (param, grad): steps_with_placed_gradients(mesh, PLACEMENTS[param], GRADIENT_PLACEMENTS[grad])
        for param in PLACEMENTS
        for grad in GRADIENT_PLACEMENTS
    }
    return results


def resume_all(folder, sharded=True):
    """Go on from the checkpoints in `folder`, each loaded over other weights than it was begun with."""
    return {
        case_name(*case): Run(*case, sharded=sharded, seed=99)
        .load(checkpoint_of(folder, case))
        .train(HALF, STEPS)
        .result()
        for case in RESUMED
    }


def main():
    action, folder = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    results = train_all(folder) if action == "train" else resume_all(folder)
    results["world_size"] = dist.get_world_size()
    torch.save(results, Path(folder) / f"{action}-{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
