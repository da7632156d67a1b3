"""Where the images come from: the dataset, its columns, its classes and its splits."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
from errors.fail import fail, first_line
from errors.nearest import did_you_mean
from huggingface_hub.utils import logging as hub_logging
from PIL import Image

from .arguments import DataArguments
from .folders import check_local_folder, load_folders


def load_digits() -> datasets.DatasetDict:
    """scikit-learn's 1,797 digits, always split in the same way: 1,437 to train on, 360 to evaluate on."""
    from sklearn.datasets import load_digits as sklearn_digits

    digits = sklearn_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    rows = {"image": [Image.fromarray(array) for array in pixels], "label": digits.target}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    halves = dataset.train_test_split(test_size=360, stratify_by_column="label", seed=42)
    return datasets.DatasetDict(train=halves["train"], validation=halves["test"])


def load_splits(args: DataArguments, cache_dir: str | None) -> Any:
    """All splits of the dataset that --dataset_name names, of the image folders, or of the digits."""
    if args.is_digits:
        return load_digits()
    if args.dataset_name is None:
        return load_folders(args)
    name = args.dataset_name
    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()  # a Hub out of reach would be reported six times before it is an error
    try:
        local = Path(name).expanduser()
        if name.startswith((".", "/", "~")) and not local.is_dir():
            fail(f"--dataset_name {name!r}: no such folder")
        path = str(local) if local.is_dir() else name
        splits = datasets.load_dataset(path, args.dataset_config_name, cache_dir=cache_dir, streaming=args.streaming)
    except Exception as error:  # `datasets` raises a dozen kinds for a dataset that cannot be had
        fail(f"cannot load --dataset_name {name!r}: {first_line(error)}")
    finally:
        hub_logging.set_verbosity(verbosity)
    check_local_folder(name, splits)
    return splits


def find_columns(dataset: Any, args: DataArguments) -> tuple[str, str]:
    """The names of the column of images and of the column of labels: those given, else the only ones of their type."""
    features = dataset.features
    listing = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
    names = []
    for what, kind, given in (
        ("image", datasets.Image, args.image_column_name),
        ("label", datasets.ClassLabel, args.label_column_name),
    ):
        option = f"--{what}_column_name"
        found = [name for name, feature in features.items() if isinstance(feature, kind)]
        if not found and what == "label":
            found = [name for name in ("label", "labels") if name in features]
        if given is not None and given not in features:
            guess = did_you_mean(given, features)
            fail(f"{option} {given!r}: the dataset has no such column.{guess} Its columns: {listing}")
        if given is not None and what == "image" and not isinstance(features[given], datasets.Image):
            fail(f"{option} {given!r} holds no images; the dataset's columns: {listing}")
        if given is None and len(found) != 1:
            fail(f"{'no' if not found else 'more than one'} {what} column found: pass {option}; columns: {listing}")
        names.append(given or found[0])
    image, label = names
    if not isinstance(features[label], datasets.ClassLabel | datasets.Value):
        kind = type(features[label]).__name__
        fail(
            f"the label column {label!r} holds a value of type {kind} in each row, not one class name or number: "
            f"pass --label_column_name; columns: {listing}"
        )
    return image, label
