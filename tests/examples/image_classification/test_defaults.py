"""What the scripts choose where no option says which model and which random views."""

import json

import numpy as np
import pytest
from images.sample import Sample
from PIL import Image

TRAIN = ["--do_train", "--per_device_train_batch_size", 8, "--max_steps", 1, "--train_dir"]
TINY = ["--model_type", "cifar_resnet", "--config_overrides", "depths=[1],hidden_sizes=[8]"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Folders of two classes, by the side and the mode of the images; `like` is grey in three channels."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("pictures")

    def folder(side, mode):
        made = root / f"{side}-{mode}"
        for name in () if made.exists() else ("a", "b"):
            (made / name).mkdir(parents=True)
            for number in range(4):
                image = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
                image = image.convert("L").convert("RGB") if mode == "like" else image.convert(mode)
                image.save(made / name / f"{number}.png")
        return made

    return folder


def config_of(result):
    assert result.status == 0, result.output
    return json.loads((result.folder / "config.json").read_text())


def test_small_images_from_scratch_get_a_small_vit(run_example, pictures):
    result = run_example(*TRAIN, pictures(32, "RGB"))
    config = config_of(result)
    names = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size")
    assert [config[name] for name in names] == ["vit", 192, 6, 3, 4, 32]
    assert "vit of 2,692,034 parameters (for another: --model_type, --config_overrides)" in result.output


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--model_type", "vit"], (768, 12, 12)),
        (["--config_overrides", "num_hidden_layers=1"], (768, 1, 12)),
        (["--image_size", "128"], (768, 12, 12)),
    ],
)
def test_options_say_which_model_is_built(example, flags, expected):
    import torch
    from models.loading import from_scratch

    model_args, data_args, *_ = example.parse_arguments(["--output_dir", "x", "--train_dir", "y", *flags])
    labels = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    with torch.device("meta"):
        config = from_scratch(model_args, data_args, Sample.of([Image.new("RGB", (32, 32))]), labels)[0].config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == expected


def test_the_image_processor_of_a_new_model_is_the_one_that_its_checkpoint_gives_when_it_is_resumed(example, tmp_path):
    import torch
    from models.loading import from_scratch
    from transformers import AutoImageProcessor

    model_args, data_args, *_ = example.parse_arguments(["--output_dir", "x", "--train_dir", "y", *TINY])
    picture = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(32, 32, 3))
    labels = {"id2label": {0: "a"}, "label2id": {"a": 0}}
    processor = from_scratch(model_args, data_args, Sample.of([picture]), labels)[1]
    processor.save_pretrained(tmp_path)
    read = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(read) is type(processor)
    assert torch.equal(*(one(picture, return_tensors="pt")["pixel_values"] for one in (processor, read)))


@pytest.mark.parametrize(
    ("side", "mode", "flags", "expected"),
    [
        (28, "L", [], "shift (chosen by auto"),
        (28, "like", [], "shift (chosen by auto"),
        (28, "1", [], "shift (chosen by auto"),
        (28, "RGB", [], "shift_flip (chosen by auto"),
        (80, "L", ["--image_size", 16], "shift (chosen by auto"),
        (80, "L", ["--image_size", 80], "resized_crop_flip (chosen by auto"),
        (28, "L", ["--image_size", 80], "shift (chosen by auto"),
        (28, "L", ["--augmentation", "shift_flip"], "shift_flip\n"),
    ],
)
def test_small_grey_images_are_not_mirrored_unless_asked_for(run_example, pictures, side, mode, flags, expected):
    result = run_example(*TRAIN, pictures(side, mode), *TINY, *flags)
    assert result.status == 0, result.output
    assert [line for line in result.output.splitlines(True) if line.startswith(f"augmentation: {expected}")]


def test_evaluation_names_no_augmentation(run_example, pictures):
    trained = run_example(*TRAIN, pictures(28, "L"), "--config_overrides", "num_hidden_layers=1,hidden_size=12")
    flags = ["--do_eval", "--validation_dir", pictures(28, "L"), "--model_name_or_path", trained.folder]
    result = run_example(*flags)
    assert result.status == 0, result.output
    assert "augmentation" not in result.output
