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


def with_class_labels(splits: datasets.DatasetDict, column: str) -> datasets.DatasetDict:
    """`splits` with `column` as ClassLabel, made from the values that occur where it is not one yet.

    The values are text, or whole numbers, which give the classes their names and their order.
    """
    if isinstance(next(iter(splits.values())).features[column], datasets.ClassLabel):
        return splits
    values = {value for split in splits.values() for value in split.unique(column)}
    text = bool(values) and all(isinstance(value, str) for value in values)
    numbers = bool(values) and all(type(value) is int and value >= 0 for value in values)
    if not text and not numbers:
        fail(f"the label column {column!r} must hold class names or whole numbers from 0, in every row")
    names = [str(value) for value in sorted(values)]
    if numbers and len(values) <= max(values):
        # As numbers they would be taken for places in the list of classes.
        splits = splits.cast_column(column, datasets.Value("string"))
    return splits.cast_column(column, datasets.ClassLabel(names=names))


def split_of(splits: Any, name: str, option: str) -> Any:
    """The split `name`, which `option` requests."""
    if name not in splits:
        guess = did_you_mean(name, splits)
        fail(f"{option} {name!r}: the dataset has no such split.{guess} Its splits: {', '.join(splits)}")
    return splits[name]


def evaluation_split(splits: Any, args: DataArguments) -> str | None:
    """The name of the split to evaluate on; None where images of the training split are held out."""
    return args.eval_split_name or next((name for name in ("validation", "test") if name in splits), None)


def choose_splits(
    splits: datasets.DatasetDict, args: DataArguments, label: str, do_train: bool, do_eval: bool
) -> tuple[datasets.Dataset | None, datasets.Dataset | None]:
    """The datasets to train and to evaluate on; None where not requested."""

    def split(name: str, option: str) -> datasets.Dataset:
        rows, available = split_of(splits, name, option), ", ".join(splits)
        found, classes = rows.unique(label), rows.features[label].num_classes
        if not found or None in found or min(found) < 0:
            fail(f"{option} {name!r} has no images, or images without a label; the dataset's splits: {available}")
        if max(found) >= classes:
            value = max(found)
            row = rows[label].index(value)
            fail(f"{option} {name!r}: row {row} has the {label} {value}; the {classes} classes end at {classes - 1}")
        return rows

    train = evaluation = None
    eval_name = evaluation_split(splits, args)
    if do_train or (do_eval and eval_name is None):
        train = split(args.train_split_name, "--train_split_name")
    if do_eval and eval_name is not None:
        evaluation = split(eval_name, "--eval_split_name")
    elif do_eval and train is not None:
        try:
            parts = train.train_test_split(args.train_val_split, seed=42, stratify_by_column=label)
        except ValueError:  # too few images of some class
            parts = train.train_test_split(args.train_val_split, seed=42)
        train, evaluation = parts["train"], parts["test"]
    if train is not None and args.max_train_samples is not None:
        train = train.shuffle(seed=42).select(range(min(args.max_train_samples, len(train))))
    if evaluation is not None and args.max_eval_samples is not None:
        evaluation = evaluation.shuffle(seed=42).select(range(min(args.max_eval_samples, len(evaluation))))
    return (train if do_train else None), evaluation


def choose_streams(
    splits: datasets.IterableDatasetDict, args: DataArguments, label: str, do_train: bool, do_eval: bool
) -> tuple[datasets.IterableDataset | None, datasets.IterableDataset | None]:
    """The streams to train and to evaluate on; None where not requested."""
    if not isinstance(next(iter(splits.values())).features[label], datasets.ClassLabel):
        fail(f"--streaming needs a label column that lists its classes, and {label!r} does not: leave the flag out")

    def stream(name: str, option: str, limit: int | None) -> datasets.IterableDataset:
        rows = split_of(splits, name, option)
        return rows if limit is None else rows.take(limit)

    train = stream(args.train_split_name, "--train_split_name", args.max_train_samples) if do_train else None
    if not do_eval:
        return train, None
    name = evaluation_split(splits, args)
    if name is None:
        available = ", ".join(splits)
        fail(f"--streaming cannot hold out images: name a split with --eval_split_name; the splits: {available}")
    return train, stream(name, "--eval_split_name", args.max_eval_samples)
