"""Runs of run_image_classification.py in the test's own process, and tiny datasets in schemas of the Hub."""

import contextlib
import importlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from paths import IMAGE_CLASSIFICATION

QUIET = ["--use_cpu", "--disable_tqdm", "true", "--report_to", "none"]

# Columns of images are None, columns of labels their number of classes. Splits: number of images, their least and
# greatest side.
SCHEMAS = {
    "cifar10": {"img": None, "label": 10},
    "cifar100": {"img": None, "fine_label": 100, "coarse_label": 20},
    "imagenet": {"image": None, "label": 1000},
}
SPLITS = {
    "cifar10": {"train": (24, 32, 32), "test": (10, 32, 32)},
    "cifar100": {"train": (24, 32, 32), "test": (10, 32, 32)},
    "imagenet": {"train": (24, 40, 70), "validation": (10, 40, 70), "test": (4, 40, 70)},
}


@dataclass
class Result:
    """How a run ended, and what it left."""

    status: int
    output: str
    folder: Path

    @property
    def answer(self):
        """The one line that tells what was wrong."""
        lines = [line for line in self.output.splitlines() if "error:" in line]
        assert self.status == 2, self.output
        assert len(lines) == 1, self.output
        return lines[0]


@pytest.fixture(scope="session")
def example():
    """The example script as a module; the files beside it can be imported too."""
    import datasets

    # So many seconds `datasets` waits after each stream for threads of pyarrow to end.
    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0.05
    sys.path.insert(0, str(IMAGE_CLASSIFICATION))
    yield importlib.import_module("run_image_classification")
    sys.path.remove(str(IMAGE_CLASSIFICATION))


@pytest.fixture
def run_example(example, tmp_path, monkeypatch):
    """Runs the script with the arguments given, in an output folder of its own unless told which."""
    import torch

    numbers, threads = iter(range(100)), torch.get_num_threads()

    def run(*arguments, folder=None):
        folder = folder or tmp_path / f"run{next(numbers)}"
        argv = [*map(str, arguments), *QUIET, "--output_dir", str(folder)]
        monkeypatch.setattr(sys, "argv", ["run_image_classification.py", *argv])
        status, output = 0, io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            try:
                example.main()
            except SystemExit as error:
                status = error.code
        return Result(status, output.getvalue(), folder)

    torch.set_num_threads(1)
    yield run
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def odd_photos(tmp_path_factory):
    """Photos as users have them: a class in two spellings, one of one image, and files of many names.

    There are 9 of a café, 12 of a dog and one of a newt. The first of all is tiny, and all of the café are grey.
    """
    from PIL import Image

    root = tmp_path_factory.mktemp("odd_photos")
    composed, split = "caf\u00e9", "cafe\u0301"
    names = [f"{split}/{number}.PNG" for number in range(5)] + [f"{composed}/{letter}.jpg_large" for letter in "abc"]
    names += [f"{composed}/no_suffix", "newt/0.png", *(f"dog/{number}.png" for number in range(12))]
    for number, name in enumerate(names):
        file, side = root / name, 4 if number == 0 else 16
        file.parent.mkdir(exist_ok=True)
        colour = (9 * number, 9 * number, 9 * number) if "caf" in name else (9 * number, 80, 200)
        Image.new("RGB", (side, side), colour).save(file, "PNG" if file.suffix.lower() == ".png" else "JPEG")
    for name in ("dog/live.heic", "dog/notes.txt"):
        (root / name).write_bytes(b"\0\0\0\x18ftypheic of a kind that Pillow does not read")
    for name in ("dog/Thumbs.db", "dog/.DS_Store", "dog/._0.png", "desktop.ini"):
        (root / name).write_bytes(b"left by a system")
    return root


@pytest.fixture(scope="session")
def write_dataset():
    """Writes a dataset of a schema above as parquet, one file a split.

    `change` is called with each split's name and rows, a list of values for each column, and may spoil them.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import ClassLabel, Features, Image

    def write(folder, schema, change=lambda split, rows: None, files=1):
        rng, columns = np.random.default_rng(0), SCHEMAS[schema]
        features = Features({name: Image() if kind is None else ClassLabel(kind) for name, kind in columns.items()})
        folder.mkdir()
        for split, (count, low, high) in SPLITS[schema].items():
            rows = {
                name: [png(rng, low, high) if kind is None else number % kind for number in range(count)]
                for name, kind in columns.items()
            }
            if (schema, split) == ("imagenet", "test"):
                rows["label"] = [-1] * count
            change(split, rows)
            # Not through `datasets`, which would refuse some of the values that a file of other origin may hold.
            table = pa.table(rows, schema=features.arrow_schema)
            for number in range(files):
                part = table.slice(number * count // files, count // files)
                pq.write_table(part, folder / f"{split}-{number:05}-of-{files:05}.parquet")
        return folder

    return write


def png(rng, low, high):
    from PIL import Image

    height, width = rng.integers(low, high, endpoint=True, size=2)
    with io.BytesIO() as file:
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}


@pytest.fixture(scope="session")
def hub_like(write_dataset, tmp_path_factory):
    """Folders of tiny datasets, by schema."""
    root = tmp_path_factory.mktemp("hub")
    return {schema: write_dataset(root / schema, schema) for schema in SCHEMAS}
