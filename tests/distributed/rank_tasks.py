"""What ranks do for a test: `rank_tasks.py TASK FOLDER` calls the function TASK in each rank.

FOLDER holds what the test wishes, spec.json, and takes the results.
"""

import json
import os
import runpy
import signal
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification

from hf_lpsgd import LPSGDM, tie_p_schedule
from hf_lpsgd.optim.measurement import reference_size

CLASSES = 4
DEFAULTS = {
    "optim": "lpsgdm",
    "optim_args": "p_max=20",
    "learning_rate": 3e-3,
    "lr_scheduler_type": "linear",
    "max_steps": 8,
    "per_device_train_batch_size": 4,
    "max_grad_norm": 0.0,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
}


class RandomImages(Dataset):
    """Images of noise, with labels that can be told from them."""

    def __init__(self, length):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(length, 1, 8, 8, generator=generator)
        self.labels = (self.images[:, 0, :2].mean((1, 2)) * 4).round().long().remainder(CLASSES)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def tiny_vit(classes=CLASSES):
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.2,
        num_labels=classes,
    )
    model = ViTForImageClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())  # so that runs in bf16 start from the weights of the others
    return model


class KillAt(TrainerCallback):
    """Ends this rank at the end of a step, without a chance to tidy up."""

    def __init__(self, step, rank):
        self.step, self.rank = step, rank

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step and self.rank in (None, args.process_index):
            os.kill(os.getpid(), signal.SIGKILL)


class SkippedSteps(TrainerCallback):
    def __init__(self):
        self.skipped = []

    def on_optimizer_step(self, args, state, control, optimizer, **kwargs):
        self.skipped.append(bool(optimizer.step_was_skipped))


def train(spec, folder):
    """Train as `spec` says; the first rank writes `result.json` and `weights.pt`.

    Args:
        spec: `arguments` are those of TrainingArguments that differ from DEFAULTS, `resume` is a checkpoint,
            `kill_at` a step at whose end the rank `kill_rank` is killed (None: every rank), `fp16_on_cpu` lets
            DeepSpeed do what it refuses on a CPU.
    """
    if spec.get("fp16_on_cpu"):
        from deepspeed.accelerator import get_accelerator

        type(get_accelerator()).is_fp16_supported = lambda self: True
    arguments = {**DEFAULTS, "output_dir": str(folder / "out"), **spec.get("arguments", {})}
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        # Where there is no accelerator, the Trainer leaves DeepSpeed out unless it is given such a state.
        PartialState(backend="gloo")
        arguments["accelerator_config"] = {"use_configured_state": True}
    else:
        arguments["use_cpu"] = True
    args = TrainingArguments(**arguments)
    resume = spec.get("resume")
    # The Trainer itself restores only the tensors of a ViT that are saved under the names they have in memory.
    model = ViTForImageClassification.from_pretrained(resume) if resume else tiny_vit(spec.get("classes", CLASSES))
    skipped = SkippedSteps()
    callbacks = [skipped, KillAt(spec.get("kill_at"), spec.get("kill_rank"))]
    trainer = Trainer(model, args, train_dataset=RandomImages(256), callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    result = {**engine_facts(trainer), "skipped": skipped.skipped, "history": trainer.state.log_history}
    weights = {name: full_weight(parameter) for name, parameter in trainer.model.named_parameters()}
    if args.process_index == 0:
        (folder / "result.json").write_text(json.dumps(result))
        torch.save(weights, folder / "weights.pt")


def write_start(spec, folder):
    """Write the weights that every run starts from."""
    torch.save(dict(tiny_vit().named_parameters()), folder / "weights.pt")


def engine_facts(trainer):
    """What this run really trained with, so that a test can refuse one that went another way."""
    engine, optimizer = trainer.model_wrapped, trainer.optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    momenta = [state["momentum_buffer"] for state in optimizer.state.values() if "momentum_buffer" in state]
    is_deepspeed = type(engine).__name__ == "DeepSpeedEngine"
    partitions = getattr(optimizer, "partitions", None)
    return {
        "engine": type(engine).__name__,
        "world_size": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
        "zero_stage": engine.zero_optimization_stage() if is_deepspeed else None,
        "offload": engine.zero_cpu_offload() if is_deepspeed else None,
        "padding": sum(partitions.padding.values()) if partitions is not None else None,
        "clipping": engine.gradient_clipping() if is_deepspeed else None,
        "optimizer": type(optimizer).__name__,
        "scheduler": type(getattr(trainer.lr_scheduler, "scheduler", trainer.lr_scheduler)).__name__,
        "model_dtype": str(next(trainer.model.parameters()).dtype),
        "momentum_dtypes": sorted({str(momentum.dtype) for momentum in momenta}),
        "momentum_elements": sum(momentum.numel() for momentum in momenta),
    }


def full_weight(parameter):
    """A weight in whole and in the precision that the optimizer keeps it in, wherever the engine has put its parts."""
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(parameter).clone()
    return parameter.detach().clone()


def step_with_zero_redundancy_optimizer(spec, folder):
    """Train with torch's ZeroRedundancyOptimizer around LPSGDM, and with LPSGDM alone, by DDP."""
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.nn.parallel import DistributedDataParallel

    PartialState(backend="gloo", cpu=True)
    result = {"world_size": torch.distributed.get_world_size()}
    weights = {}
    for name in ("alone", "sharded"):
        torch.manual_seed(0)
        layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        model = DistributedDataParallel(layers)
        options = {"lr": 0.01, "p_max": 20.0}
        if name == "alone":
            optimizer = LPSGDM(model.parameters(), **options)
        else:
            optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=LPSGDM, **options)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, spec["steps"])
        tie = tie_p_schedule(optimizer, scheduler, spec["schedule"], num_training_steps=spec["steps"])
        result["tied"] = type(tie.optimizer).__name__
        ps = result.setdefault(f"p_{name}", [])
        for step in range(spec["steps"]):
            generator = torch.Generator().manual_seed(step * 2 + torch.distributed.get_rank())
            optimizer.zero_grad()
            model(torch.randn(16, 4, generator=generator)).square().mean().backward()
            optimizer.step()
            scheduler.step()
            ps.append(optimizer.param_groups[0]["p"])
        elements = sum(state["momentum_buffer"].numel() for state in tie.optimizer.state.values())
        result[f"momentum_{name}"] = elements
        weights |= {f"{name}.{key}": weight.detach() for key, weight in layers.named_parameters()}
    if torch.distributed.get_rank() == 0:
        (folder / "result.json").write_text(json.dumps(result))
        torch.save(weights, folder / "weights.pt")


def warm_up_where_the_shard_of_one_rank_has_no_gradient(spec, folder):
    """Train with ZeroRedundancyOptimizer; the gradients of what the second rank holds are zero at first."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    PartialState(backend="gloo", cpu=True)
    rank = torch.distributed.get_rank()
    params = [torch.nn.Parameter(torch.ones(8)) for _ in range(2)]
    optimizer = ZeroRedundancyOptimizer(params, optimizer_class=LPSGDM, lr=0.1, grad_rms="auto")
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 2, 1.0))
    tie_p_schedule(optimizer, scheduler, num_training_steps=4)
    own = [any(param is other for other in optimizer.optim.param_groups[0]["params"]) for param in params]
    sizes = []
    for step in range(4):
        for index, param in enumerate(params):
            param.grad = torch.full_like(param, 1.0 if index == 0 or step > 0 else 0.0)
        optimizer.step()
        scheduler.step()
        sizes.append(reference_size(optimizer.optim.param_groups[0]))
    (folder / f"{rank}.json").write_text(json.dumps({"own": own, "sizes": sizes}))


def train_models_of_their_own(spec, folder):
    """Train another model in each rank, the more steps the higher its number; alone, be the rank `spec["rank"]`."""
    rank = spec["rank"] if "rank" in spec else torch.distributed.get_rank()
    torch.manual_seed(rank)
    model = torch.nn.Linear(4, 3)
    optimizer = LPSGDM(model.parameters(), lr=0.01, grad_rms="auto")
    for _ in range(25 + 5 * rank):
        (model(torch.randn(8, 4)).square().mean() * 100.0**rank).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save({"size": optimizer.param_groups[0]["grad_rms"], "weight": model.weight.detach()}, folder / f"{rank}.pt")


def measure_with_fsdp1(spec, folder):
    """Write what is measured with FSDP1, whose shards are no DTensors, and by the whole model with the whole batch."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    rank, result = torch.distributed.get_rank(), {}
    for name in ("whole", "sharded", "flat"):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2, bias=False))
        if name != "whole":
            device = torch.device("cpu")
            model = FullyShardedDataParallel(model, use_orig_params=name == "sharded", device_id=device)
        optimizer = LPSGDM(model.parameters(), lr=0.01, grad_rms="auto")
        tie_p_schedule(optimizer, torch.optim.lr_scheduler.LinearLR(optimizer), "constant")
        sizes = []
        for step in range(25):
            batch = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            model(batch if name == "whole" else batch.chunk(2)[rank]).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            sizes.append(reference_size(optimizer.param_groups[0]))
        elements = sum(param.numel() for param in model.parameters())
        result[name] = {"engine": type(model).__name__, "elements": elements, "sizes": sizes}
    if rank == 0:
        (folder / "result.json").write_text(json.dumps(result))


def run_script(spec, folder):
    """Run the Python script `spec["script"]` with `spec["arguments"]`."""
    sys.argv = [spec["script"], *spec["arguments"]]
    sys.path.insert(0, os.path.dirname(spec["script"]))
    runpy.run_path(spec["script"], run_name="__main__")


def run_loop(spec, folder):
    """Run run_image_classification_no_trainer.py; write its engine and what it logged; it saves its model in `out`."""
    logs, facts, prepare = [], {}, Accelerator.prepare

    def prepare_and_tell(accelerator, *objects, **kwargs):
        prepared = prepare(accelerator, *objects, **kwargs)
        (engine,) = [thing for thing in prepared if isinstance(thing, torch.nn.Module)]
        is_deepspeed = type(engine).__name__ == "DeepSpeedEngine"
        facts["engine"], facts["world_size"] = type(engine).__name__, accelerator.num_processes
        facts["zero_stage"] = engine.zero_optimization_stage() if is_deepspeed else None
        return prepared

    Accelerator.prepare = prepare_and_tell
    Accelerator.log = lambda accelerator, values, step=None, **kwargs: logs.append(values)
    arguments = [*spec["arguments"], "--output_dir", str(folder / "out")]
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        PartialState(backend="gloo")
    else:
        arguments.append("--cpu")
    run_script({**spec, "arguments": arguments}, folder)
    if os.environ["RANK"] == "0":
        (folder / "result.json").write_text(json.dumps({**facts, "history": logs}))


def weights_from_pretrained(spec, folder):
    """Load the model in `spec["model"]`; write its weights, and what from_pretrained missed, to the folder."""
    model, info = ViTForImageClassification.from_pretrained(spec["model"], output_loading_info=True)
    (folder / "result.json").write_text(json.dumps({key: sorted(map(str, value)) for key, value in info.items()}))
    torch.save(dict(model.named_parameters()), folder / "weights.pt")


def read_launch_config(spec, folder):
    """Write what `accelerate launch --config_file CONFIG script.py` would launch, and the plugins this gives."""
    import torch.distributed.run
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command, launch_command_parser
    from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin

    result = {}

    def instead_of_launching(args):
        result["processes"] = int(args.nproc_per_node)
        names = [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]
        result["environment"] = {name: os.environ[name] for name in names}
        if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
            result["deepspeed"] = DeepSpeedPlugin().deepspeed_config
        if os.environ.get("ACCELERATE_USE_FSDP") == "true":
            # Before FSDP2, this plugin was not made without a GPU.
            knows_fsdp2 = "fsdp_version" in FullyShardedDataParallelPlugin.__dataclass_fields__
            plugin = vars(FullyShardedDataParallelPlugin()) if knows_fsdp2 else {}
            result["fsdp"] = {name: str(value) for name, value in plugin.items()}

    torch.distributed.run.run = instead_of_launching
    result["distributed_type"] = load_config_from_file(spec["config"]).distributed_type.value
    launch_command(launch_command_parser().parse_args(["--config_file", spec["config"], "script.py"]))
    (folder / "result.json").write_text(json.dumps(result, default=str))


if __name__ == "__main__":
    if "WORLD_SIZE" in os.environ:
        torch.distributed.init_process_group("gloo")
    task, results = sys.argv[1], Path(sys.argv[2])
    globals()[task](json.loads((results / "spec.json").read_text()), results)
