"""A trained model that is evaluated as it is, on images of other classes, or of its classes in another order."""

import datasets
import numpy as np
import pytest
from PIL import Image

TINY = ["--model_type", "cifar_resnet", "--config_overrides", "depths=[1],hidden_sizes=[8]", "--image_size", 16]
PICTURE = Image.fromarray(np.zeros((16, 16, 3), dtype=np.uint8))


@pytest.fixture
def rows(tmp_path):
    """A folder of a dataset whose classes have these names."""

    def write(*names):
        folder = tmp_path / "-".join(names)
        folder.mkdir()
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
        columns = {"image": [PICTURE] * 8, "label": [0, 1] * 4}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "train-00000-of-00001.parquet")
        return folder

    return write


@pytest.fixture
def trained(run_example, rows):
    flags = ["--do_train", *TINY, "--per_device_train_batch_size", 4, "--max_steps", 1]
    result = run_example(*flags, "--dataset_name", rows("cat", "dog"))
    assert result.status == 0, result.output
    return result.folder


def evaluate(run_example, trained, folder, *flags):
    return run_example("--do_eval", "--model_name_or_path", trained, "--dataset_name", folder, *flags)


def test_the_models_classes_in_another_order_are_refused(run_example, trained, rows):
    result = evaluate(run_example, trained, rows("dog", "cat"))
    assert result.status == 2
    (line,) = [line for line in result.output.splitlines() if "error" in line]
    assert (
        "are cat, dog, and those of the dataset dog, cat, in another order: each would be counted as another" in line
    )


def test_other_classes_are_taken_by_their_numbers_with_a_warning(run_example, trained, rows):
    result = evaluate(run_example, trained, rows("Katze", "Hund"))
    assert result.status == 0, result.output
    assert result.output.count("are cat, dog, and those of the dataset Katze, Hund: they are taken for the same") == 1


def test_the_models_own_classes_are_evaluated_without_a_word_and_other_classes_are_trained_on(
    run_example, trained, rows, tmp_path
):
    result = evaluate(run_example, trained, tmp_path / "cat-dog", *TINY)  # as in the recipe that it was trained by
    assert result.status == 0, result.output
    assert "classes of" not in result.output
    flags = ["--do_train", "--max_steps", 1, "--per_device_train_batch_size", 4]
    result = evaluate(run_example, trained, rows("Katze", "Hund"), *flags)
    assert result.status == 0, result.output
    assert "classes of" not in result.output
