"""Where the images come from: memory, a file, a stream; and what is said of those that cannot be used."""

import io
import itertools
import json
import shutil
import warnings

import datasets
import numpy as np
import pytest
import torch
from images import inputs, sample, sources
from images.arguments import DataArguments
from PIL import Image
from pil_processors import BitImageProcessorPil, ViTImageProcessorPil
from safetensors.torch import load_file

TINY = ["--model_type", "cifar_resnet", "--config_overrides", "depths=[1],hidden_sizes=[8]", "--image_size", 16]
TRAIN = ["--do_train", "--optim", "lpsgdm", "--optim_args", "p_max=20", *TINY]
TRAIN += ["--per_device_train_batch_size", 8]
STREAM = ["--streaming", "--shuffle_buffer", 10, "--max_steps", 3]


def processor(side, channels=3):
    square = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    statistics = {"image_mean": [0.3, 0.5, 0.6][:channels], "image_std": [0.2, 0.25, 0.3][:channels]}
    return BitImageProcessorPil(**square, **statistics, do_convert_rgb=channels == 3)


def image_rows(sides):
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (*side, 3), dtype=np.uint8)) for side in sides]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(3)})
    return datasets.Dataset.from_dict(
        {"image": images, "label": [number % 3 for number in range(len(images))]}, features=features
    )


@pytest.mark.parametrize("kind", ["none", "shift", "shift_flip"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("sides", [[(16, 16)] * 20, [(20, 31), (31, 20), (9, 12)] * 7], ids=["one size", "many sizes"])
def test_cached_images_equal_those_decoded_anew_bit_for_bit(kind, mode, sides):
    options = (image_rows(sides), ("image", "label"), processor(16, len(mode)), mode, kind, 5)
    plain, cached = inputs.ImageDataset(*options), inputs.prepare_images(*options, cache_mb=1)
    assert type(cached) is inputs.CachedImages
    order = [3, 0, 11, 7, 7, 19]
    seen = []
    for epoch in (0, 1):
        plain.epoch.fill_(epoch)
        cached.epoch.fill_(epoch)
        pairs = list(zip(plain.__getitems__(order), cached.__getitems__(order), strict=True))
        assert all(torch.equal(one["pixel_values"], other["pixel_values"]) for one, other in pairs)
        assert all(one["labels"] == other["labels"] for one, other in pairs)
        assert pairs[0][1]["pixel_values"].dtype == torch.float32
        seen.append(torch.stack([item["pixel_values"] for _, item in pairs]))
    assert torch.equal(*seen) == (kind == "none")
    assert torch.equal(cached[3]["pixel_values"], seen[1][0])


def test_images_are_not_cached_where_that_would_take_too_much_or_not_be_exact():
    rows = image_rows([(64, 64)] * 90)  # 1.05 MiB as bytes

    class Sharpening(BitImageProcessorPil):
        def normalize(self, image, *args, **kwargs):
            return super().normalize(image, *args, **kwargs) - np.roll(image, 1, axis=-1)

    def prepared(kind="shift_flip", made_by=None, cache_mb=2):
        made_by = made_by or processor(64)
        return type(inputs.prepare_images(rows, ("image", "label"), made_by, "RGB", kind, 0, cache_mb))

    sharpening = Sharpening(**processor(64).to_dict())
    assert prepared() is inputs.CachedImages
    assert prepared(made_by=ViTImageProcessorPil(size={"height": 64, "width": 64})) is inputs.CachedImages
    assert prepared(cache_mb=1) is inputs.ImageDataset
    assert prepared(cache_mb=0) is inputs.ImageDataset
    assert prepared(kind="resized_crop_flip") is inputs.ImageDataset
    assert prepared(made_by=sharpening) is inputs.ImageDataset


def test_data_workers_see_each_epoch_s_views_of_the_cache():
    options = (image_rows([(16, 16)] * 12), ("image", "label"), processor(16), "RGB", "shift_flip", 0)
    cached = inputs.prepare_images(*options, cache_mb=1)
    loader = torch.utils.data.DataLoader(cached, batch_size=6, num_workers=1, persistent_workers=True)
    for epoch in range(2):
        cached.epoch.fill_(epoch)
        expected = torch.stack([item["pixel_values"] for item in cached.__getitems__(list(range(12)))])
        assert torch.equal(torch.cat([batch["pixel_values"] for batch in loader]), expected)


@pytest.fixture
def stream(example, write_dataset, tmp_path):
    """A stream of 24 images in three files, as the model wants them."""
    folder = write_dataset(tmp_path / "stream", "imagenet", files=3)

    def make(seed=0, kind="resized_crop_flip", shuffle_buffer=5):
        data = datasets.load_dataset(str(folder), streaming=True)["train"]
        return inputs.StreamedImages(
            data, ("image", "label"), processor(16), "RGB", kind, seed, shuffle_buffer=shuffle_buffer
        )

    return make


def take(stream, count):
    items = list(itertools.islice(stream, count))
    return [item["labels"] for item in items], torch.stack([item["pixel_values"] for item in items])


def test_order_and_views_of_a_stream_follow_from_the_seed(stream):
    (labels, pixels), (again, same) = take(stream(), 60), take(stream(), 60)
    assert labels == again
    assert torch.equal(pixels, same)
    # It goes on where it ends, each time with every image once, in another order and other views.
    passes = [labels[:24], labels[24:48]]
    assert [sorted(one) for one in passes] == [list(range(24))] * 2
    assert passes[0] != passes[1] != list(range(24))
    views = [dict(zip(labels[at : at + 24], pixels[at : at + 24], strict=True)) for at in (0, 24)]
    assert not any(torch.equal(views[0][label], views[1][label]) for label in range(24))
    assert take(stream(seed=1), 24)[0] != passes[0]


def test_stream_to_evaluate_on_keeps_its_order_and_ends(stream):
    assert take(stream(kind="none", shuffle_buffer=None), 100)[0] == list(range(24))


def test_data_workers_share_a_stream_and_need_no_file_each(stream):
    data = stream(kind="none", shuffle_buffer=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are more workers than cores
        loader = torch.utils.data.DataLoader(data, batch_size=4, num_workers=4)
        assert sorted(label for batch in loader for label in batch["labels"].tolist()) == list(range(24))


def test_streamed_run_resumed_ends_as_the_uninterrupted_one_bit_for_bit(run_example, hub_like, tmp_path):
    # 24 images in batches of 8: the checkpoint is in the second pass, the end in the third.
    arguments = [*TRAIN, "--dataset_name", hub_like["imagenet"], *STREAM, "--max_steps", 8, "--save_steps", 5]
    whole = run_example(*arguments)
    assert whole.status == 0, whole.output
    killed = tmp_path / "killed"
    shutil.copytree(whole.folder / "checkpoint-5", killed / "checkpoint-5")
    resumed = run_example(*arguments, "--resume_from_checkpoint", "True", folder=killed)
    assert resumed.status == 0, resumed.output
    one, other = (load_file(run.folder / "model.safetensors") for run in (whole, resumed))
    start = load_file(killed / "checkpoint-5" / "model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not any(torch.equal(one[name], start[name]) for name in one if name.endswith("weight"))


def test_image_folders_can_be_streamed(run_example, tmp_path):
    for name, level in (("cat", 40), ("dog", 200)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (20, 24), (level, number, 0)).save(tmp_path / "images" / name / f"{number}.png")
    result = run_example(*TRAIN, "--train_dir", tmp_path / "images", *STREAM)
    assert result.status == 0, result.output
    assert json.loads((result.folder / "config.json").read_text())["id2label"] == {"0": "cat", "1": "dog"}


BROKEN = {"bytes": b"no image at all", "path": None}
CUT = "cut"
REMEDY = "; --on_bad_image skip leaves such images out"

BAD_DATA = {
    "undecodable image, cached": ("cifar10", "train", "img", 20, BROKEN, [], ["row 20", "cannot be decoded", REMEDY]),
    "undecodable image in the sample": (
        "cifar10",
        "train",
        "img",
        3,
        BROKEN,
        [],
        ["row 3", "cannot be decoded", REMEDY],
    ),
    "image cut short": ("cifar10", "train", "img", 20, CUT, [], ["row 20", "cannot be decoded", "truncated"]),
    "no image": ("cifar10", "train", "img", 20, None, [], ["row 20", "no image", REMEDY]),
    "undecodable image, not cached": (
        "imagenet",
        "train",
        "image",
        20,
        BROKEN,
        ["--augmentation", "resized_crop_flip"],
        ["row 20", "cannot be decoded"],
    ),
    "undecodable image in a data worker": (
        "imagenet",
        "train",
        "image",
        20,
        BROKEN,
        ["--augmentation", "resized_crop_flip", "--dataloader_num_workers", 1],
        ["row 20", "cannot be decoded", REMEDY],
    ),
    "undecodable image in a stream": ("imagenet", "train", "image", 20, BROKEN, STREAM, ["stream cannot be decoded"]),
    "undecodable image to evaluate on": (
        "imagenet",
        "validation",
        "image",
        5,
        BROKEN,
        ["--do_eval"],
        ["row 5", "cannot be decoded"],
    ),
    "label out of range": ("cifar10", "train", "label", 7, 12, [], ["row 7", "the label 12", "10 classes end at 9"]),
    "label out of range in a stream": (
        "imagenet",
        "train",
        "label",
        7,
        1000,
        STREAM,
        ["label 1000", "end at 999"],
    ),
    "negative label": ("cifar10", "train", "label", 7, -1, [], ["'train'", "without a label"]),
    "no label": ("cifar10", "train", "label", 7, None, [], ["'train'", "without a label"]),
    "no label in a stream": ("imagenet", "train", "label", 7, None, STREAM, ["the label None"]),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_data_that_cannot_be_used_is_told_in_one_line(run_example, write_dataset, tmp_path, monkeypatch, case):
    schema, bad_split, column, row, value, flags, words = BAD_DATA[case]
    if case != "undecodable image in the sample":
        monkeypatch.setattr(sample, "LOOKED_AT", 1)

    def spoil(split, rows):
        if split == bad_split:
            cell = rows[column][row]
            rows[column][row] = {"bytes": cell["bytes"][:-400], "path": None} if value is CUT else value

    folder = write_dataset(tmp_path / "data", schema, spoil)
    result = run_example(*TRAIN, "--num_train_epochs", 1, "--dataset_name", folder, *flags)
    assert all(word in result.answer for word in words), result.answer
    assert not (result.folder / "model.safetensors").exists()


def deep(mode, suffix):
    """An encoded image of `mode`, a ramp over all that the mode holds."""
    ramp = np.linspace(0, 1 if mode == "F" else 65535, 40 * 40).reshape(40, 40)
    kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    with io.BytesIO() as file:
        Image.fromarray(ramp.astype(kind)).save(file, suffix)
        return {"bytes": file.getvalue(), "path": None}


DEEP = {"cached": [], "plain": ["--augmentation", "resized_crop_flip"], "streamed": STREAM}


@pytest.mark.covering("way", "row")
@pytest.mark.parametrize("way", DEEP)
@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
@pytest.mark.parametrize(("bad_split", "row"), [("train", 2), ("train", 20), ("validation", 5)])
def test_images_of_more_than_8_bits_are_refused(
    run_example, write_dataset, tmp_path, monkeypatch, way, mode, bad_split, row
):
    if row >= 16:  # then it is met in training
        monkeypatch.setattr(sample, "LOOKED_AT", 1)

    def spoil(split, rows):
        if split == bad_split:
            rows["image"][row] = deep(mode, "TIFF")

    folder = write_dataset(tmp_path / "data", "imagenet", spoil)
    flags = [] if way == "streamed" else ["--num_train_epochs", 1]
    result = run_example(*TRAIN, "--do_eval", *flags, "--dataset_name", folder, *DEEP[way])
    words = [f"has the mode {mode}, of 16 or 32 bits", "convert the images to 8 bits"]
    words += [f"row {row}"] if row < 16 or way != "streamed" else ["place"]
    assert all(word in result.answer for word in words), result.answer
    assert "'loss'" not in result.output or row >= 16
    assert not (result.folder / "model.safetensors").exists()


def test_file_of_16_bits_is_named_even_where_the_dataset_would_convert_it(run_example, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(2):
            (tmp_path / "images" / name / f"{number}.png").write_bytes(deep("I;16", "PNG")["bytes"])
    folders = ["--train_dir", tmp_path / "images", "--validation_dir", tmp_path / "images"]
    assert "cat/0.png) has the mode I;16" in run_example(*TRAIN, *folders).answer
    features = datasets.Features({"image": datasets.Image(mode="RGB"), "label": datasets.ClassLabel(2)})
    rows = {"image": [deep("I;16", "PNG")] * 8, "label": [0, 1] * 4}
    (tmp_path / "rows").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "rows/train-00000-of-00001.parquet")
    assert "row 0 has the mode I;16" in run_example(*TRAIN, "--dataset_name", tmp_path / "rows").answer


def test_undecodable_file_of_an_image_folder_is_named(run_example, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (16, 16)).save(tmp_path / "images" / name / f"{number}.png")
    (tmp_path / "images/dog/2.png").write_bytes(b"no image at all")
    assert "dog/2.png) cannot be decoded" in run_example(*TRAIN, "--train_dir", tmp_path / "images").answer


BAD_ARGUMENTS = {
    "no such split": ([*STREAM, "--train_split_name", "trian"], ["'trian'", "train, validation, test"]),
    "no such split to evaluate on": ([*STREAM, "--do_eval", "--eval_split_name", "dev"], ["'dev'", "train"]),
    "no such column": ([*STREAM, "--label_column_name", "class"], ["'class'", "label (ClassLabel)"]),
    "stream without an end": (["--streaming"], ["--max_steps"]),
    "epochs of a stream": ([*STREAM, "--save_strategy", "epoch"], ["--save_strategy", "--save_steps"]),
    "p by the epochs of a stream": ([*STREAM, "--optim_args", "p_granularity=epoch"], ["p_granularity=step"]),
    "first images of a stream": ([*STREAM, "--max_train_samples", 9], ["--max_train_samples", "--streaming"]),
    "no buffer": ([*STREAM, "--shuffle_buffer", 0], ["--shuffle_buffer"]),
    "negative cache": (["--image_cache_mb", -1], ["--image_cache_mb"]),
    "images too small for the network": (["--model_type", "cifar_vgg", "--config_overrides", "{}"], ["image_size 32"]),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_arguments_that_cannot_be_met_are_told_in_one_line(run_example, hub_like, case):
    flags, words = BAD_ARGUMENTS[case]
    result = run_example(*TRAIN, "--dataset_name", hub_like["imagenet"], *flags)
    assert all(word in result.answer for word in words), result.answer


def test_digits_cannot_be_streamed(run_example):
    assert "--dataset_name" in run_example("--do_train", *STREAM).answer


def test_stream_needs_classes_that_are_known_beforehand(run_example, tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    rows = {"image": [Image.new("RGB", (16, 16))] * 4, "label": ["a", "b"] * 2}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train-00000-of-00001.parquet")
    assert "lists its classes" in run_example(*TRAIN, "--dataset_name", tmp_path, *STREAM).answer


def test_dataset_with_two_label_columns_asks_which_one(capsys):
    features = {"img": datasets.Image(), "fine": datasets.ClassLabel(2), "coarse": datasets.ClassLabel(2)}
    empty = datasets.Dataset.from_dict({name: [] for name in features}, features=datasets.Features(features))
    with pytest.raises(SystemExit):
        sources.find_columns(empty, DataArguments())
    assert "more than one label column found: pass --label_column_name" in capsys.readouterr().err
    chosen = sources.find_columns(empty, DataArguments(label_column_name="coarse"))
    assert chosen == ("img", "coarse")
