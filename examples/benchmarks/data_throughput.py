"""Is the model the bottleneck? Images per second of the whole training loop, against the model's own.

    python examples/benchmarks/data_throughput.py --output results.json --dataset_name path/to/cifar10

The loop is that of run_image_classification.py: random views, collating, the Trainer, LPSGDM. The model's own is
a copy of the model and of its optimizer, trained on batches that were prepared beforehand. The two take turns step by
step, so that what else the machine does meets both alike; medians are compared. Flags that are not listed by --help
are those of run_image_classification.py. With no --dataset_name the images are generated, in the schema of CIFAR-10.
"""

import argparse
import copy
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import datasets
import numpy as np
import torch
from output_folder import make_folder
from PIL import Image
from provenance import provenance
from transformers import TrainerCallback

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "image_classification"))

from card.facts import RunFacts  # noqa: E402
from images.inputs import ImageDataset  # noqa: E402
from images.prepare import for_model, load_images  # noqa: E402
from models.loading import load_model  # noqa: E402
from run.arguments import parse_arguments  # noqa: E402
from run_image_classification import make_trainer  # noqa: E402

DEFAULTS = {
    "--model_type": "cifar_resnet",
    "--config_overrides": "depths=[1,1,1],hidden_sizes=[16,32,64]",
    "--per_device_train_batch_size": "128",
    "--optim": "lpsgdm",
    "--optim_args": "p_max=20",
    "--learning_rate": "1e-3",
    "--logging_steps": "50",
}


def write_generated(folder: Path, images: int) -> None:
    """Noise in the schema of CIFAR-10: as JPEG, `img` and `label`, 10 classes."""
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(images):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        with io.BytesIO() as file:
            coarse.resize((32, 32), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
            encoded.append({"bytes": file.getvalue(), "path": None})
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(10)})
    rows = {"img": encoded, "label": rng.integers(0, 10, images).tolist()}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / "train-00000-of-00001.parquet"))


class TakeTurns(TrainerCallback):
    """After each step of the Trainer's loop, times one of the model alone."""

    def __init__(self, model: Any, batches: list[dict[str, torch.Tensor]], rate: float) -> None:
        from hf_lpsgd import LPSGDM

        self.model, self.batches = copy.deepcopy(model).train(), batches
        self.optimizer = LPSGDM(self.model.parameters(), lr=rate, p_max=20)
        self.resumed: float | None = None
        self.loop: list[float] = []
        self.alone: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.model.to(args.device)
        self.batches = [{name: values.to(args.device) for name, values in batch.items()} for batch in self.batches]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        begun = now(args.device)
        if self.resumed is not None:
            self.loop.append(begun - self.resumed)
        batch = self.batches[state.global_step % len(self.batches)]
        self.optimizer.zero_grad()
        self.model(**batch).loss.backward()
        self.optimizer.step()
        self.resumed = now(args.device)
        self.alone.append(self.resumed - begun)


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def data_alone(dataset: Any, size: int, batches: int) -> float:
    """Images per second that `dataset` gives when no model is trained."""
    rates = []
    for number in range(batches):
        begin = time.perf_counter()
        dataset.__getitems__([(number * size + place) % len(dataset) for place in range(size)])
        rates.append(size / (time.perf_counter() - begin))
    return median(rates)


def measure(flags: list[str], steps: int, warmup: int) -> dict[str, Any]:
    arguments = parse_arguments(flags)
    training_args = arguments.training
    images = load_images(arguments.data, arguments.model.cache_dir, do_train=True, do_eval=False)
    torch.manual_seed(training_args.seed)
    model, processor = load_model(arguments.model, arguments.data, images)
    begin = time.perf_counter()
    train: Any
    train, _ = for_model(images, model, processor, "shift_flip", training_args.seed, arguments.data)
    trainer = make_trainer(model, processor, training_args, train, None, RunFacts(dataset=""))
    decoding = time.perf_counter() - begin
    size = training_args.per_device_train_batch_size
    parts = [train.__getitems__(list(range(start, start + size))) for start in range(0, 4 * size, size)]
    turns = TakeTurns(model, [trainer.data_collator(part) for part in parts], training_args.learning_rate)
    trainer.add_callback(turns)
    trainer.train()
    loop, alone = turns.loop[warmup:], turns.alone[warmup + 1 :]
    options = (images.columns, processor, train.views.mode, "shift_flip", training_args.seed)
    plain = ImageDataset(images.train, *options)
    return {
        "model": f"{model.config.model_type}, {model.num_parameters():,} parameters",
        "images": len(plain),
        "batch_size": size,
        "steps": len(loop),
        "images_per_second": {"loop": size / median(loop), "model_alone": size / median(alone)},
        "ratio_of_medians": median(alone) / median(loop),
        "ratio_of_totals": sum(alone) / sum(loop),
        "data_alone_images_per_second": {
            "as_used": data_alone(train, size, 30),
            "decoded_anew": data_alone(plain, size, 10),
        },
        "cached": type(train).__name__ == "CachedImages",
        "seconds_to_decode_and_set_up_once": decoding,
        "loop_seconds": loop,
        "model_alone_seconds": alone,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the results")
    parser.add_argument("--steps", type=int, default=150, help="steps measured")
    parser.add_argument("--warmup", type=int, default=10, help="steps before them")
    parser.add_argument("--generated_images", type=int, default=5000, help="how many, with no --dataset_name")
    args, others = parser.parse_known_args()
    if args.output.is_dir():
        parser.error(f"--output {args.output} is a folder; name a file")
    make_folder(parser, "--output", args.output.parent)
    origin = provenance("data_throughput.py", ("transformers", "accelerate", "datasets", "pillow", "numpy"))
    with tempfile.TemporaryDirectory() as folder:
        flags = list(others)
        if "--dataset_name" not in flags:
            (Path(folder) / "data").mkdir()
            write_generated(Path(folder) / "data", args.generated_images)
            flags += ["--dataset_name", f"{folder}/data", "--cache_dir", f"{folder}/cache"]
            flags += ["--eval_split_name", "train"]  # so that no images are held out
        for name, value in DEFAULTS.items():
            flags += [] if name in flags else [name, value]
        flags += ["--do_train", "--max_steps", str(args.steps + args.warmup + 1), "--save_strategy", "no"]
        flags += ["--report_to", "none", "--disable_tqdm", "true", "--output_dir", f"{folder}/run"]
        results = measure(flags, args.steps, args.warmup)
    args.output.write_text(json.dumps({**origin, **results}, indent=1) + "\n")
    speed = results["images_per_second"]
    print(f"whole loop:  {speed['loop']:,.0f} images/s")
    print(f"model alone: {speed['model_alone']:,.0f} images/s")
    print(f"ratio:       {results['ratio_of_medians']:.1%} (medians), {results['ratio_of_totals']:.1%} (totals)")
    print(f"results:     {args.output}")


if __name__ == "__main__":
    main()
