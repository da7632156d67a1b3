"""What a whole step of the Trainer costs with lpsgdm, with sgd and with adamw; and what importing hf_lpsgd costs.

Three Trainers train the same model on the same data, each in a thread of its own, and take turns step by step.
step_time.py calls this.
"""

import subprocess
import sys
import tempfile
import threading
import time
from statistics import median
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification
from transformers.trainer_callback import PrinterCallback

import hf_lpsgd  # noqa: F401

OPTIMIZERS = {"sgd": "momentum=0.9", "lpsgdm": "p_max=20", "adamw_torch_fused": None}
# name: (options of ViTConfig, batch size, share of the steps)
MODELS: dict[str, tuple[dict[str, Any], int, float]] = {
    "the digits' ViT": (
        {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10},
        32,
        1.0,
    ),
    "ViT-Ti/16": (
        {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 12, "num_attention_heads": 3}
        | {"image_size": 224, "patch_size": 16, "num_channels": 3, "num_labels": 1000},
        8,
        0.2,
    ),
}
WARMUP_STEPS = 5
RUNS = 6
IMPORTS = 5


class TakeTurns(TrainerCallback):
    """Gives the turn to the next Trainer after each step, and times the steps between."""

    def __init__(self, mine: threading.Semaphore, next_one: threading.Semaphore, progress: Any) -> None:
        self.mine, self.next_one, self.progress = mine, next_one, progress
        self.resumed = 0.0
        self.seconds: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.mine.acquire()
        self.resumed = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.device.type == "cuda":
            torch.cuda.synchronize(args.device)
        self.seconds.append(time.perf_counter() - self.resumed)
        self.progress.update()
        self.next_one.release()
        if state.global_step < state.max_steps:
            self.mine.acquire()
        self.resumed = time.perf_counter()


class Noise(torch.utils.data.Dataset):
    """Images of noise, the same at each reading."""

    def __init__(self, channels: int, size: int, classes: int, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn((64, channels, size, size), generator=generator)
        self.labels = torch.randint(0, classes, (64,), generator=generator)
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.images[index % 64], "labels": self.labels[index % 64]}


def compare(model: str, steps: int, device: torch.device) -> dict[str, Any]:
    """Time steps of the Trainer with each optimizer, in several runs; in each run another optimizer goes first."""
    options, batch_size, share = MODELS[model]
    count = max(round(steps * share / RUNS), 2)
    names = list(OPTIMIZERS)
    runs = []
    with tqdm(total=(count + WARMUP_STEPS) * len(names) * RUNS, desc=model) as progress:
        for run in range(RUNS):
            first = run % len(names)
            runs.append(take_turns(model, count, device, names[first:] + names[:first], progress))
    # Steps of one round lie close together in time: their ratio is free of what changes slowly.
    ratios = [[a / b for a, b in zip(run["lpsgdm"], run["sgd"], strict=True)] for run in runs]
    return {
        "parameters": ViTForImageClassification(ViTConfig(**options)).num_parameters(),
        "batch_size": batch_size,
        "median_seconds": {name: median(value for run in runs for value in run[name]) for name in names},
        "lpsgdm_over_sgd": median(ratio for run in ratios for ratio in run),
        "lpsgdm_over_sgd_in_each_run": [median(run) for run in ratios],
        "seconds": runs,
    }


def take_turns(
    model: str, count: int, device: torch.device, names: list[str], progress: Any
) -> dict[str, list[float]]:
    """Seconds of `count` steps of each of the optimizers `names`, which step in this order."""
    options, batch_size, _ = MODELS[model]
    steps = count + WARMUP_STEPS
    turns = [threading.Semaphore(int(index == 0)) for index in range(len(names))]
    callbacks: dict[str, TakeTurns] = {}
    failures: list[BaseException] = []
    threads = []
    with tempfile.TemporaryDirectory() as folder:
        for index, name in enumerate(names):
            callbacks[name] = TakeTurns(turns[index], turns[(index + 1) % len(turns)], progress)
            args = TrainingArguments(
                f"{folder}/{name}",
                optim=name,
                optim_args=OPTIMIZERS[name],
                learning_rate=1e-4,
                max_steps=steps,
                per_device_train_batch_size=batch_size,
                logging_steps=10,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                log_level="error",
                use_cpu=device.type == "cpu",
            )
            torch.manual_seed(0)
            trainer = Trainer(
                ViTForImageClassification(ViTConfig(**options)),
                args,
                train_dataset=Noise(
                    options["num_channels"], options["image_size"], options["num_labels"], steps * batch_size
                ),
                callbacks=[callbacks[name]],
            )
            trainer.remove_callback(PrinterCallback)
            threads.append(threading.Thread(target=_run, args=(trainer, turns, failures), daemon=True))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    return {name: callback.seconds[WARMUP_STEPS:] for name, callback in callbacks.items()}


def _run(trainer: Trainer, turns: list[threading.Semaphore], failures: list[BaseException]) -> None:
    try:
        trainer.train()
    except BaseException as error:  # the others would wait for their turn for ever
        failures.append(error)
        for turn in turns:
            turn.release(10**6)


def import_seconds() -> float:
    """What `import hf_lpsgd` takes after `import transformers.training_args`: the median of several processes."""
    code = (
        "import time, transformers.training_args; begun = time.perf_counter(); "
        "import hf_lpsgd; print(time.perf_counter() - begun)"
    )
    shown = [subprocess.run([sys.executable, "-c", code], capture_output=True, check=True) for _ in range(IMPORTS)]
    return median(float(process.stdout.split()[-1]) for process in shown)


def measure(steps: int, device: torch.device) -> dict[str, Any]:
    """Steps of the Trainer for each model, and seconds of the imports."""
    return {"import_seconds": import_seconds(), "models": {name: compare(name, steps, device) for name in MODELS}}


def table(results: dict[str, Any]) -> str:
    lines = ["A whole step of the Trainer, ms (median)", ""]
    names = list(OPTIMIZERS)
    lines.append(f"| model | parameters | {' | '.join(names)} | lpsgdm / sgd |")
    lines.append("|---|---|" + "---|" * (len(names) + 1))
    for model, result in results["models"].items():
        times = " | ".join(f"{result['median_seconds'][name] * 1e3:.2f}" for name in names)
        runs = result["lpsgdm_over_sgd_in_each_run"]
        ratio = f"{result['lpsgdm_over_sgd']:.3f} ({min(runs):.3f} to {max(runs):.3f} in {len(runs)} runs)"
        lines.append(f"| {model} | {result['parameters']:,} | {times} | {ratio} |")
    lines += [
        "",
        f"`import hf_lpsgd` after `import transformers.training_args`: {results['import_seconds']:.3f} s",
        "",
    ]
    return "\n".join(lines)
