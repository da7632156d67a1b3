"""The classes: their names and their numbers, from the labels of the splits that are used."""

import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import datasets
from errors.fail import fail, warn
from errors.listing import some


def composed(name: str) -> str:
    """`name` in one of its spellings: to Unicode an accented letter is one character or two, and systems differ."""
    return unicodedata.normalize("NFC", name)


def look_alike(names: Iterable[str]) -> list[str]:
    """Pairs of `names` that differ only in spaces or capitals. Single letters are left out: they may well be two."""
    seen: dict[str, str] = {}
    pairs = []
    for name in names:
        plain = " ".join(name.split()).casefold()
        if plain in seen and len(plain) > 1:
            pairs.append(f"{seen[plain]!r} and {name!r}")
        seen[plain] = name
    return pairs


def warn_of_like_names(classes: Iterable[str]) -> None:
    pairs = look_alike(classes)
    if pairs:
        warn(f"these classes are taken for different ones, though only spaces or capitals say so: {some(pairs)}")


def is_text(feature: Any) -> bool:
    return str(getattr(feature, "dtype", "")).endswith("string")


def is_whole(feature: Any) -> bool:
    return str(getattr(feature, "dtype", "")).startswith(("int", "uint"))


def labels_of(rows: datasets.Dataset, column: str) -> list[Any]:
    return rows.select_columns(column)[:][column]  # `unique` and the like would copy the images of chosen rows


def check_labels(rows: datasets.Dataset, column: str, split: str) -> None:
    """End the run with one line that names the first row of `rows` whose label is none.

    Args:
        rows: a split that is used.
        column: name of the column of labels.
        split: the option that requests the split, and its name.
    """
    feature, labels = rows.features[column], labels_of(rows, column)
    if not labels:
        fail(f"{split} has no images: name another split")

    def row_of(label: Any) -> str:
        return f"row {labels.index(label)} has the {column} {label!r}"

    if isinstance(feature, datasets.ClassLabel):
        classes = feature.num_classes
        for label in dict.fromkeys(labels):
            if label is None or label < 0:
                fail(f"{split} has images without a label: {row_of(label)}. Remove such rows, or name another split")
            if label >= classes:
                fail(f"{split}: {row_of(label)}; the {classes} classes end at {classes - 1}")
        return
    for label in dict.fromkeys(labels):
        if label is None or not (label.strip() if is_text(feature) else is_whole(feature) and label >= 0):
            must = f"the label column {column!r} must hold class names or whole numbers from 0 in every row"
            fail(f"{must}: {row_of(label)} in {split}")


def with_class_labels(splits: Mapping[str, datasets.Dataset], column: str) -> dict[str, datasets.Dataset]:
    """`splits` with `column` as ClassLabel, made from the values that occur where it is not one yet.

    The values are text, or whole numbers, which give the classes their names and their order. Spellings of a name that
    are the same to Unicode are one class.
    """
    feature = next(iter(splits.values())).features[column]
    if isinstance(feature, datasets.ClassLabel):
        name_of: dict[Any, str] = dict(enumerate(map(composed, feature.names)))
        names = list(dict.fromkeys(name_of.values()))
        if len(names) == len(feature.names):
            return dict(splits)
    else:
        values = sorted({value for rows in splits.values() for value in labels_of(rows, column)})
        name_of = {value: composed(str(value)) for value in values}
        names = sorted(set(name_of.values())) if is_text(feature) else list(name_of.values())
    numbers = {name: number for number, name in enumerate(names)}
    label = datasets.ClassLabel(names=names)
    return {
        split: rows.remove_columns(column).add_column(
            column, [numbers[name_of[value]] for value in labels_of(rows, column)], feature=label
        )
        for split, rows in splits.items()
    }
