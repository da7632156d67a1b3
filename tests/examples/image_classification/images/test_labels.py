"""Columns of labels: which classes they mean, and which are refused."""

import json

import datasets
import numpy as np
import pytest
from PIL import Image

TINY = ["--model_type", "cifar_resnet", "--config_overrides", "depths=[1],hidden_sizes=[8]", "--image_size", 16]
TRAIN = ["--do_train", *TINY, "--per_device_train_batch_size", 8, "--max_steps", 1]
PICTURE = Image.fromarray(np.zeros((16, 16, 3), dtype=np.uint8))


@pytest.fixture
def run_on(run_example, tmp_path):
    """Trains on images with the labels given, of a feature of `datasets`."""

    def run(labels, feature, *flags, column="label"):
        features = datasets.Features({"image": datasets.Image(), column: feature})
        rows = datasets.Dataset.from_dict({"image": [PICTURE] * len(labels), column: labels}, features=features)
        (tmp_path / "rows").mkdir()
        rows.to_parquet(tmp_path / "rows/train-00000-of-00001.parquet")
        return run_example(*TRAIN, "--dataset_name", tmp_path / "rows", *flags)

    return run


@pytest.mark.parametrize(
    ("labels", "kind", "names"),
    [
        ([3, 10_000_000, 10, 3], "int64", ["3", "10", "10000000"]),
        ([1, 2, 3, 1], "uint8", ["1", "2", "3"]),
        ([0, 2, 1, 0], "int32", ["0", "1", "2"]),
        ([0, 2, 11, 0], "int64", ["0", "2", "11"]),
        (["b", "a", "b", "a"], "large_string", ["a", "b"]),
    ],
)
def test_classes_are_the_values_that_occur(run_on, labels, kind, names):
    result = run_on(labels, datasets.Value(kind))
    assert result.status == 0, result.output
    found = json.loads((result.folder / "config.json").read_text())["id2label"]
    assert list(found.values()) == names


def test_each_image_keeps_its_class(example):
    from images.labels import with_class_labels

    values = [30, 4, 500, 4]
    for feature, labels in (("int64", values), ("string", [str(value) for value in values])):
        features = datasets.Features({"row": datasets.Value("int64"), "label": datasets.Value(feature)})
        rows = datasets.Dataset.from_dict({"row": range(4), "label": labels}, features=features)
        made = with_class_labels(datasets.DatasetDict(train=rows), "label")["train"]
        assert made.features["label"].int2str(made["label"][:]) == [str(value) for value in values]


@pytest.mark.parametrize(
    ("labels", "feature", "words"),
    [
        (
            [[0], [1], [0], [1]],
            datasets.List(datasets.Value("int64")),
            ["'label'", "type List", "--label_column_name"],
        ),
        ([PICTURE] * 4, datasets.Image(), ["'label'", "type Image"]),
        ([0.5, 1.0, 0.5, 1.0], datasets.Value("float32"), ["'label' must hold class names or whole numbers"]),
        ([0, -1, 0, 1], datasets.Value("int64"), ["'label' must hold class names or whole numbers from 0"]),
        ([0, None, 0, 1], datasets.Value("int64"), ["'label' must hold class names or whole numbers from 0"]),
    ],
    ids=["lists", "images", "fractions", "negative", "missing"],
)
@pytest.mark.parametrize("named", [True, False])
def test_labels_that_are_no_classes_are_refused(run_on, labels, feature, words, named):
    flags = ["--label_column_name", "label", "--image_column_name", "image"]
    answer = run_on(labels, feature, *(flags if named or isinstance(feature, datasets.Image) else [])).answer
    assert all(word in answer for word in words), answer


CAFE, SPLIT_CAFE = "caf\u00e9", "cafe\u0301"


@pytest.fixture
def splits(tmp_path):
    """Writes a dataset whose splits have these labels."""

    def write(feature=None, **labels):
        (tmp_path / "splits").mkdir()
        for split, values in labels.items():
            kind = feature or datasets.Value("int64" if isinstance(values[0], int) else "string")
            features = datasets.Features({"image": datasets.Image(), "label": kind})
            rows = datasets.Dataset.from_dict({"image": [PICTURE] * len(values), "label": values}, features=features)
            rows.to_parquet(tmp_path / f"splits/{split}-00000-of-00001.parquet")
        return tmp_path / "splits"

    return write


@pytest.mark.parametrize("unused", [[-1] * 4, [None] * 4, [0, 7, 1]])
@pytest.mark.parametrize("named", [[], ["--eval_split_name", "validation"]])
def test_labels_of_a_split_that_is_not_used_do_not_matter(run_example, splits, unused, named):
    folder = splits(datasets.Value("int64"), train=[0, 1] * 4, validation=[1, 0], test=unused)
    result = run_example(*TRAIN, "--do_eval", "--dataset_name", folder, *named)
    assert result.status == 0, result.output
    assert "in 2 classes" in result.output
    assert "warning: classes" not in result.output


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"train": [0, 1, 1, -1], "validation": [0, 1]}, ["row 3 has the label -1 in --train_split_name 'train'"]),
        ({"train": [0, 1], "validation": [0, None]}, ["row 1 has the label None in --eval_split_name 'validation'"]),
        ({"train": ["a", "b"], "test": ["b", " "]}, ["row 1 has the label ' ' in --eval_split_name 'test'"]),
    ],
)
def test_the_split_and_the_row_of_a_label_that_cannot_be_used_are_named(run_example, splits, labels, words):
    answer = run_example(*TRAIN, "--do_eval", "--dataset_name", splits(**labels)).answer
    assert all(word in answer for word in words), answer


def test_a_class_to_evaluate_on_that_is_never_trained_on_is_named(run_example, splits):
    folder = splits(train=["a", "b"] * 4, validation=["a", "b", "c"])
    result = run_example(*TRAIN, "--do_eval", "--dataset_name", folder)
    assert result.status == 0, result.output
    assert "warning: classes to evaluate on that have no image to train on: c\n" in result.output


@pytest.mark.parametrize("feature", [datasets.ClassLabel(names=[CAFE, "pub", SPLIT_CAFE]), None])
def test_a_class_name_is_the_same_however_unicode_spells_it(run_example, splits, feature):
    values = [0, 1, 2] if feature else [CAFE, "pub", SPLIT_CAFE]
    folder = splits(feature, train=values * 3, validation=values)
    result = run_example(*TRAIN, "--do_eval", "--dataset_name", folder)
    assert result.status == 0, result.output
    names = json.loads((result.folder / "config.json").read_text())["id2label"]
    assert list(names.values()) == [CAFE, "pub"]
    if feature:
        answer = run_example(*TRAIN, "--do_eval", "--dataset_name", folder, "--streaming").answer
        assert f"classes twice, spelt otherwise in Unicode ({CAFE})" in answer


def test_names_that_differ_only_in_spaces_or_capitals_are_told_but_single_letters(example, capsys):
    from images.labels import warn_of_like_names

    warn_of_like_names(["cat", "Cat ", "dog", "a", "A"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(": 'cat' and 'Cat '")
    warn_of_like_names(["cat", "dog", "a", "A"])
    assert capsys.readouterr().err == ""


def test_one_class_is_nothing_to_train_on(run_on):
    assert "'label' has one class only (cat)" in run_on(["cat"] * 4, datasets.Value("string")).answer


def test_lists_are_no_labels_in_a_stream_either(run_on):
    labels = [[0], [1], [0], [1]]
    answer = run_on(labels, datasets.List(datasets.Value("int64")), "--streaming").answer
    assert "type List" in answer
