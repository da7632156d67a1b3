"""--on_bad_image skip: the run is that on the good images alone, and tells how many were left out."""

import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

TINY = ["--model_type", "cifar_resnet", "--config_overrides", "depths=[1],hidden_sizes=[8]", "--image_size", 16]
TRAIN = ["--do_train", "--do_eval", *TINY, "--per_device_train_batch_size", 8, "--max_steps", 6, "--save_steps", 3]
SKIP = ["--on_bad_image", "skip"]
BROKEN = {"bytes": b"no image at all", "path": None}
WAYS = {"cached": [], "plain": ["--augmentation", "resized_crop_flip"]}


def break_some(split, rows):
    cut = rows["image"][20 if split == "train" else 0]
    broken = {
        "train": {0: BROKEN, 5: None, 20: {"bytes": cut["bytes"][:-400], "path": None}},
        "validation": {4: BROKEN},
    }
    for row, cell in broken.get(split, {}).items():
        rows["image"][row] = cell


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def broken(write_dataset, tmp_path):
    return write_dataset(tmp_path / "broken", "imagenet", break_some)


@pytest.mark.parametrize("way", ["cached", pytest.param("plain", marks=pytest.mark.exhaustive)])
def test_run_is_that_on_the_good_images_and_resumes_exactly(run_example, broken, tmp_path, way):
    import datasets

    arguments = [*TRAIN, *SKIP, *WAYS[way], "--dataset_name"]
    run = run_example(*arguments, broken)
    assert run.status == 0, run.output
    lines = run.output.splitlines()
    at = lines.index("left out 3 of 24 images to train, which cannot be decoded:")
    assert [line.split(":")[0].strip() for line in lines[at + 1 : at + 4]] == [
        "the image in row 0 cannot be decoded",
        "there is no image in row 5",
        "the image in row 20 cannot be decoded",
    ]
    assert "left out 1 of 10 images to evaluate" in run.output
    assert "21 images to train and 9 images to evaluate" in run.output
    card = (run.folder / "README.md").read_text()
    assert "| images left out, as they cannot be decoded | 3 to train, 1 to evaluate |" in card
    assert "| images to train | 21 |" in card

    good = tmp_path / "good"
    good.mkdir()
    for split, gone in (("train", {0, 5, 20}), ("validation", {4})):
        rows = datasets.load_dataset("parquet", data_files=str(broken / f"{split}-00000-of-00001.parquet"))["train"]
        rows = rows.cast_column("image", datasets.Image(decode=False))
        rows = rows.select([row for row in range(len(rows)) if row not in gone])
        rows.cast_column("image", datasets.Image()).to_parquet(good / f"{split}-00000-of-00001.parquet")
    plain = run_example(*arguments[: -len(SKIP) - len(WAYS[way]) - 1], *WAYS[way], "--dataset_name", good)
    assert plain.status == 0, plain.output
    assert same(weights(run.folder), weights(plain.folder))

    killed = tmp_path / "killed"
    shutil.copytree(run.folder / "checkpoint-3", killed / "checkpoint-3")
    resumed = run_example(*arguments, broken, "--resume_from_checkpoint", "True", folder=killed)
    assert resumed.status == 0, resumed.output
    assert same(weights(killed), weights(run.folder))
    assert not same(weights(killed), weights(killed / "checkpoint-3"))


def test_nothing_is_said_where_all_is_good(run_example, hub_like):
    run = run_example(*TRAIN, *SKIP, "--dataset_name", hub_like["imagenet"])
    assert run.status == 0, run.output
    assert "left out" not in run.output
    assert "| 0 to train, 0 to evaluate |" in (run.folder / "README.md").read_text()


def test_no_more_than_five_are_named(run_example, write_dataset, tmp_path):
    def spoil(split, rows):
        if split == "train":
            rows["image"][2:10] = [BROKEN] * 8

    run = run_example(*TRAIN, *SKIP, "--dataset_name", write_dataset(tmp_path / "data", "imagenet", spoil))
    assert run.status == 0, run.output
    assert "row 6 cannot" in run.output
    assert "row 7 cannot" not in run.output
    assert "and 3 more" in run.output


def deep():
    with io.BytesIO() as file:
        Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 256).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}


@pytest.mark.parametrize(
    ("rows", "cell", "words"),
    [
        (range(24), BROKEN, ["leaves no images to train", "row 0 cannot be decoded"]),
        ([22], deep(), ["row 22", "has the mode I;16"]),
        ([2], deep(), ["row 2", "has the mode I;16"]),
    ],
    ids=["all bad", "16 bits", "16 bits, among the first"],
)
def test_what_cannot_be_skipped_is_told_in_one_line(run_example, write_dataset, tmp_path, rows, cell, words):
    def spoil(split, columns):
        for row in rows if split == "train" else ():
            columns["image"][row] = cell

    folder = write_dataset(tmp_path / "data", "imagenet", spoil)
    answer = run_example(*TRAIN, *SKIP, "--dataset_name", folder).answer
    assert all(word in answer for word in words), answer


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--on_bad_image", "drop"], ["error or skip", "'drop'"]),
        ([*SKIP, "--streaming"], ["cannot go with --streaming"]),
    ],
)
def test_options_that_do_not_fit_are_told_in_one_line(run_example, hub_like, flags, words):
    answer = run_example(*TRAIN, "--dataset_name", hub_like["imagenet"], *flags).answer
    assert all(word in answer for word in words), answer
