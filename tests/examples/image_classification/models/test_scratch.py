"""Models from scratch for images of any size: patches that fit, and one line where a kind of model cannot be."""

import pytest
from images.sample import Sample
from PIL import Image


@pytest.fixture
def config_for(example):
    """The config of the model that is built for images of a side."""
    import torch
    from models.loading import from_scratch

    def build(side, *flags):
        model_args, data_args, *_ = example.parse_arguments(
            ["--output_dir", "x", "--train_dir", "y", *map(str, flags)]
        )
        labels = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
        with torch.device("meta"):
            return from_scratch(model_args, data_args, Sample.of([Image.new("RGB", (side, side))]), labels)[0].config

    return build


@pytest.mark.parametrize("kind", [[], ["--model_type", "vit", "--config_overrides", "num_hidden_layers=1"]])
@pytest.mark.parametrize("side", [1, 2, 3, 5, 7, 17, 26, 29, 31, 34, 38, 47, 59, 61, 62, 64])
def test_images_of_any_side_make_several_patches_none_of_them_cut(config_for, side, kind):
    config = config_for(side, *kind)
    assert side - 3 <= config.image_size <= side
    assert config.image_size % config.patch_size == 0
    assert min(4, side) <= config.image_size // config.patch_size <= 16


def test_a_side_that_is_requested_stays_and_pixels_that_are_not_seen_are_told(config_for, capsys):
    config = config_for(40, "--image_size", 29)
    assert (config.image_size, config.patch_size) == (29, 3)
    assert "patches of 3 makes 29 pixels: the last 2 are not seen" in capsys.readouterr().err
    config = config_for(29, "--config_overrides", "patch_size=4,num_hidden_layers=1")
    assert (config.image_size, config.patch_size) == (29, 4)
    assert "patches of 4 makes 29 pixels: the last 1 are not seen" in capsys.readouterr().err
    config_for(32)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["resnet", "cifar_resnet"])
def test_images_of_one_pixel_can_be_trained_on(config_for, kind):
    assert config_for(1, "--model_type", kind).model_type == kind


@pytest.mark.parametrize("kind", ["convnext", "swin"])
def test_images_that_are_too_small_for_a_kind_of_model_are_refused_in_one_line(config_for, kind, capsys):
    with pytest.raises(SystemExit):
        config_for(1, "--model_type", kind)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--model_type {kind!r} with" in line
    assert "cannot be trained on images of 1 x 1 pixels: " in line
