"""The columns of a dataset that hold the images and the labels, and the classes that the labels mean."""

import datasets
from errors.fail import fail
from errors.nearest import did_you_mean
from image_data import DataArguments


def find_columns(dataset: datasets.Dataset, args: DataArguments) -> tuple[str, str]:
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
