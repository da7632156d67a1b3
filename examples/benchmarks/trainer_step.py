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
    options, batch_size, share = MODELS[model]
    config = ViTConfig(**options)
    image_kind = (options["num_channels"], options["image_size"], options["num_labels"])
    count = max(round(steps * share), 1) + WARMUP_STEPS
    turns = [threading.Semaphore(int(index == 0)) for index in range(len(OPTIMIZERS))]
    callbacks: dict[str, TakeTurns] = {}
    failures: list[BaseException] = []
    threads = []
    with tempfile.TemporaryDirectory() as folder, tqdm(total=count * len(OPTIMIZERS), desc=model) as progress:
        for index, (name, optim_args) in enumerate(OPTIMIZERS.items()):
            callbacks[name] = TakeTurns(turns[index], turns[(index + 1) % len(turns)], progress)
            args = TrainingArguments(
                f"{folder}/{name}",
                optim=name,
                optim_args=optim_args,
                learning_rate=1e-4,
                max_steps=count,
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
                ViTForImageClassification(config),
                args,
                train_dataset=Noise(*image_kind, count * batch_size),
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
    seconds = {name: callback.seconds[WARMUP_STEPS:] for name, callback in callbacks.items()}
    parameters = ViTForImageClassification(config).num_parameters()
    return {
        "parameters": parameters,
        "batch_size": batch_size,
        "median_seconds": {name: median(values) for name, values in seconds.items()},
        # Steps of one round lie close together in time: their ratio is free of what changes slowly.
        "lpsgdm_over_sgd": median(a / b for a, b in zip(seconds["lpsgdm"], seconds["sgd"], strict=True)),
        "seconds": seconds,
    }


def _run(trainer: Trainer, turns: list[threading.Semaphore], failures: list[BaseException]) -> None:
    try:
        trainer.train()
    except BaseException as error:  # the others would wait for their turn for ever
        failures.append(error)
        for turn in turns:
            turn.release(10**6)


def import_seconds() -> dict[str, float]:
    """Medians of what two imports take in processes of their own, taking turns."""
    statements = {"transformers.training_args": "import transformers.training_args", "hf_lpsgd": "import hf_lpsgd"}
    code = "import time; begun = time.perf_counter(); {}; print(time.perf_counter() - begun)"
    seconds: dict[str, list[float]] = {name: [] for name in statements}
    for _ in range(IMPORTS):
        for name, statement in statements.items():
            # hf_lpsgd is timed on top of the other, since importing it imports that too.
            statement = statement if name != "hf_lpsgd" else f"{statements['transformers.training_args']}; {statement}"
            shown = subprocess.run([sys.executable, "-c", code.format(statement)], capture_output=True, check=True)
            seconds[name].append(float(shown.stdout.split()[-1]))
    return {name: median(values) for name, values in seconds.items()}


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
        lines.append(f"| {model} | {result['parameters']:,} | {times} | {result['lpsgdm_over_sgd']:.3f} |")
    seconds = results["import_seconds"]
    more = seconds["hf_lpsgd"] - seconds["transformers.training_args"]
    lines += ["", f"`import hf_lpsgd` takes {more:.3f} s more than `import transformers.training_args`.", ""]
    return "\n".join(lines)
