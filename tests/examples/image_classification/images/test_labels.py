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
    from images.sources import with_class_labels

    values = [30, 4, 500, 4]
    for feature, labels in (("int64", values), ("string", [str(value) for value in values])):
        rows = datasets.Dataset.from_dict(
            {"label": labels}, features=datasets.Features({"label": datasets.Value(feature)})
        )
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


def test_one_class_is_nothing_to_train_on(run_on):
    assert "'label' has one class only (cat)" in run_on(["cat"] * 4, datasets.Value("string")).answer


def test_lists_are_no_labels_in_a_stream_either(run_on):
    labels = [[0], [1], [0], [1]]
    answer = run_on(labels, datasets.List(datasets.Value("int64")), "--streaming").answer
    assert "type List" in answer
