"""What the images are like is read off a sample of all of them, not off the first."""

import json

import datasets
import pytest
from PIL import Image

TRAIN = ["--do_train", "--model_type", "cifar_resnet", "--config_overrides", "depths=[1],hidden_sizes=[8]"]
TRAIN += ["--per_device_train_batch_size", 8, "--max_steps", 1]
GREY, COLOUR = (9, 9, 9), (9, 80, 3)


def rows(*images):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(2)})
    pictures = [Image.new("RGB", size, colour) for size, colour, count in images for _ in range(count)]
    return datasets.Dataset.from_dict({"image": pictures, "label": [0] * len(pictures)}, features=features)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A grey class and one in colour, each of more images than were once looked at; the first one is tiny."""
    root = tmp_path_factory.mktemp("photos")
    for name, colour in (("a", GREY), ("b", COLOUR)):
        (root / name).mkdir()
        for number in range(17):
            side = 4 if (name, number) == ("a", 0) else 20
            Image.new("RGB", (side, side), colour).save(root / name / f"{number:02}.png")
    return root


@pytest.mark.parametrize("flags", [[], ["--streaming", "--shuffle_buffer", 10]], ids=["loaded", "streamed"])
def test_size_normalisation_and_mirroring_follow_from_all_images(run_example, photos, flags):
    result = run_example(*TRAIN, "--train_dir", photos, "--validation_dir", photos, *flags)
    assert result.status == 0, result.output
    assert json.loads((result.folder / "config.json").read_text())["image_size"] == 20
    assert json.loads((result.folder / "preprocessor_config.json").read_text())["image_std"] == [0.5] * 3
    drawn = "images of a stream" if flags else "of 34 images"
    (line,) = [line for line in result.output.splitlines() if line.startswith("input: ")]
    assert line == (
        "input: 20 x 20 pixels, mean 0.5, deviation 0.5 "
        f"(looked at 34 {drawn}: shorter sides of 4 to 20, median 20, 17 grey)"
    )
    assert "augmentation: shift_flip (chosen by auto" in result.output


def test_sample_is_the_same_each_time_and_drawn_from_everywhere(example):
    from images.sample import look_at

    data = rows(((12, 12), GREY, 1), ((40, 50), GREY, 299), ((50, 40), COLOUR, 300))
    sample = look_at(data, "image")
    assert sample == look_at(data, "image")
    assert (sample.side, sample.are_grey, sample.are_small) == (40, False, True)
    assert sample.grey == pytest.approx(64, abs=1)
    assert str(sample).startswith("looked at 128 of 600 images: ")


@pytest.mark.parametrize("parts", [2, 40, 600])
def test_sample_of_a_stream_is_drawn_from_many_of_its_parts(example, parts):
    from images.sample import look_at

    data = rows(((40, 40), GREY, 300), ((40, 40), COLOUR, 300)).to_iterable_dataset(parts)
    sample = look_at(data, "image")
    assert sample == look_at(data, "image")
    assert len(sample.sides) == 128
    assert 32 <= sample.grey <= 96


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_grey_is_what_looks_grey_in_whatever_mode(example, mode):
    from images.sample import is_grey

    assert is_grey(Image.new("L", (4, 4), 255).convert("RGB").convert(mode))
    assert is_grey(Image.new("RGB", (4, 4), (200, 30, 90)).convert(mode)) == (mode in ("1", "L", "LA"))


def test_images_that_are_transparent_in_parts_are_counted_and_their_colours_are_said_to_be_used(example):
    from images.sample import Sample

    opaque, holed = Image.new("RGBA", (4, 4), (9, 9, 9, 255)), Image.new("RGBA", (4, 4), (9, 9, 9, 255))
    holed.putpixel((1, 2), (0, 0, 0, 3))
    by_index = Image.new("P", (4, 4), 7)
    by_index.info["transparency"] = 7
    images = [opaque, holed, by_index, Image.new("L", (4, 4)), Image.new("LAB", (4, 4))]
    assert str(Sample.of(images)).endswith(", 2 transparent in parts, where the colour below is used")
    assert "transparent" not in str(Sample.of([opaque, *images[3:]]))


def test_images_smaller_and_larger_than_any_other_are_no_reason_to_stop(run_example, tmp_path):
    kinds = {"rgb": (1, 1), "p": (16, 16), "rgba": (16, 18), "la": (1500, 2), "cmyk": (16, 16), "1": (16, 20)}
    for name, colour in (("a", 40), ("b", 200)):
        (tmp_path / name).mkdir()
        for mode, size in kinds.items():
            image = Image.new("RGB", size, (colour, 90, 0)).convert(mode.upper())
            image.save(tmp_path / name / f"{mode}.{'tif' if mode == 'cmyk' else 'png'}")
        frames = [Image.new("RGB", (16, 16), (colour, number, 0)) for number in range(3)]
        frames[0].save(tmp_path / name / "moving.gif", save_all=True, append_images=frames[1:])
    result = run_example(*TRAIN, "--train_dir", tmp_path)
    assert result.status == 0, result.output
    assert "input: 16 x 16 pixels" in result.output
