"""Which splits of a dataset are trained and evaluated on, and how images are held out where there is but one."""

import math
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
from errors.fail import fail, warn
from errors.listing import some
from errors.nearest import did_you_mean

from .arguments import DataArguments
from .labels import composed, labels_of


def evaluation_split(splits: Any, args: DataArguments) -> str | None:
    """The name of the split to evaluate on; None where images of the training split are held out."""
    return args.eval_split_name or next((name for name in ("validation", "test") if name in splits), None)


def splits_in_use(splits: Any, args: DataArguments, label: str, do_train: bool, do_eval: bool) -> dict[str, str]:
    """The names of the splits that are used, and of each the option that requests it."""
    evaluated = evaluation_split(splits, args) if do_eval else None
    train, used = args.train_split_name, {}
    are_named = isinstance(next(iter(splits.values())).features[label], datasets.ClassLabel)
    if do_train or evaluated is None or (train in splits and not are_named):  # its labels say which classes there are
        used[train] = "--train_split_name"
    if evaluated is not None:
        used.setdefault(evaluated, "--eval_split_name")
    for name, option in used.items():
        if name not in splits:
            guess = did_you_mean(name, splits)
            fail(f"{option} {name!r}: the dataset has no such split.{guess} Its splits: {', '.join(splits)}")
    return used


def choose_splits(
    splits: Mapping[str, datasets.Dataset],
    eval_name: str | None,
    args: DataArguments,
    label: str,
    do_train: bool,
    do_eval: bool,
) -> tuple[datasets.Dataset | None, datasets.Dataset | None]:
    """The datasets to train and to evaluate on, of the splits in use; None where not requested."""
    train = splits[args.train_split_name] if do_train or eval_name is None else None
    evaluation = splits[eval_name] if do_eval and eval_name is not None else None
    if train is not None and eval_name is None:  # also without an evaluation now: a later run may evaluate the model
        train, evaluation = hold_out(train, args.train_val_split, label)
    if train is not None and args.max_train_samples is not None:
        train = train.shuffle(seed=42).select(range(min(args.max_train_samples, len(train))))
    if evaluation is not None and args.max_eval_samples is not None:
        evaluation = evaluation.shuffle(seed=42).select(range(min(args.max_eval_samples, len(evaluation))))
    return (train if do_train else None), (evaluation if do_eval else None)


def choose_streams(
    splits: datasets.IterableDatasetDict, args: DataArguments, label: str, do_train: bool, do_eval: bool
) -> tuple[datasets.IterableDataset | None, datasets.IterableDataset | None]:
    """The streams to train and to evaluate on; None where not requested."""
    if not isinstance(next(iter(splits.values())).features[label], datasets.ClassLabel):
        fail(f"--streaming needs a label column that lists its classes, and {label!r} does not: leave the flag out")
    names = list(map(composed, next(iter(splits.values())).features[label].names))
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        fail(f"the label column {label!r} has classes twice, spelt otherwise in Unicode ({some(twice)}): rename them")
    eval_name = evaluation_split(splits, args)
    if do_eval and eval_name is None:
        available = ", ".join(splits)
        fail(f"--streaming cannot hold out images: name a split with --eval_split_name; the splits: {available}")
    splits_in_use(splits, args, label, do_train, do_eval)

    train = splits[args.train_split_name] if do_train else None
    evaluation = splits[eval_name] if do_eval and eval_name is not None else None
    if evaluation is not None and args.max_eval_samples is not None:  # the first images may be all of one class
        evaluation = evaluation.shuffle(seed=42, buffer_size=args.shuffle_buffer).take(args.max_eval_samples)
    return train, evaluation


def hold_out(rows: datasets.Dataset, share: float, label: str) -> tuple[datasets.Dataset, datasets.Dataset]:
    """`rows` in two parts, the second with `share` of the images of each class, as nearly as can be.

    Each class keeps an image in the first part. Those with too few to have one in the second are named.
    """
    labels = np.asarray(labels_of(rows, label))
    classes, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
    is_single = counts[places] == 1
    if is_single.all():
        fail("no class has two images, so none can be held out: name a split or a folder to evaluate on")
    first, second = split_rows(np.flatnonzero(~is_single), labels, share)
    lost = np.setdiff1d(labels[second], labels[first])
    back = [row for number in lost for row in second[labels[second] == number][:1]]
    first, second = np.concatenate([first, np.flatnonzero(is_single), back]), second[~np.isin(second, back)]
    without = [rows.features[label].names[number] for number in np.setdiff1d(classes, labels[second])]
    if without:
        warn(f"no image is held out of these classes, so they are trained on and not evaluated: {some(without)}")
    return rows.select(first.astype(int)), rows.select(second)


def split_rows(rows: np.ndarray, labels: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers in two parts, the second with `share` of them: of each class, where there are images enough."""

    def by_class(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features = datasets.Features({"row": datasets.Value("int64"), "label": datasets.ClassLabel(labels.max() + 1)})
        table = datasets.Dataset.from_dict({"row": rows, "label": labels[rows]}, features=features)
        parts = table.train_test_split(share, seed=42, stratify_by_column="label")
        return np.asarray(parts["train"]["row"][:]), np.asarray(parts["test"]["row"][:])

    try:
        return by_class(rows)
    except ValueError:  # it has to give each class an image in each part
        is_large = (np.bincount(labels[rows]) * min(share, 1 - share) >= 1.01)[labels[rows]]
    small = np.random.default_rng(42).permutation(rows[~is_large])
    held = min(math.ceil(share * len(small)), len(small) - 1)
    if not is_large.any():
        return small[held:], small[:held]
    first, second = by_class(rows[is_large])
    return np.concatenate([first, small[held:]]), np.concatenate([second, small[:held]])


def warn_of_classes_never_trained_on(train: datasets.Dataset, evaluation: datasets.Dataset, label: str) -> None:
    missing = sorted(set(labels_of(evaluation, label)) - set(labels_of(train, label)))
    if missing:
        names = some([evaluation.features[label].names[number] for number in missing])
        warn(f"classes to evaluate on that have no image to train on: {names}")
