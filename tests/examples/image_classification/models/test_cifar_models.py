"""The models that transformers does not have: their size, their weights, and their way to a user and back."""

import numpy as np
import pytest
import torch
from PIL import Image
from pil_processors import BitImageProcessorPil
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageClassification

CONFIGS = {
    "cifar_resnet": {"depths": [1, 2], "hidden_sizes": [8, 16]},
    "cifar_vgg": {"depths": [1, 2], "hidden_sizes": [8, 16]},
}


@pytest.fixture(autouse=True)
def models(example):
    """The example has registered the models."""


def build(kind, **options):
    torch.manual_seed(0)
    return AutoModelForImageClassification.from_config(AutoConfig.for_model(kind, **options))


@pytest.mark.parametrize(
    ("kind", "classes", "parameters"),
    [
        ("cifar_resnet", 10, 11_173_962),
        ("cifar_resnet", 100, 11_220_132),
        ("cifar_vgg", 10, 9_231_114),
        ("cifar_vgg", 100, 9_277_284),
        ("resnet", 1000, 25_557_032),
    ],
)
def test_number_of_parameters_is_the_known_one(kind, classes, parameters):
    with torch.device("meta"):
        assert build(kind, num_labels=classes).num_parameters() == parameters


def test_resnet_of_other_depths_has_the_known_number_of_parameters_too():
    with torch.device("meta"):
        assert build("cifar_resnet", num_labels=10, depths=[3, 4, 6, 3]).num_parameters() == 21_282_122  # ResNet-34


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("channels", [1, 3])
def test_model_gives_logits_and_their_loss(kind, channels):
    model = build(kind, num_labels=7, num_channels=channels, **CONFIGS[kind]).eval()
    images, labels = torch.randn(5, channels, 32, 32), torch.arange(5)
    out = model(pixel_values=images, labels=labels)
    assert out.logits.shape == (5, 7)
    assert torch.equal(out.loss, torch.nn.functional.cross_entropy(out.logits, labels))
    assert model(images).loss is None
    loss, logits = model(images, labels, return_dict=False)
    assert torch.equal(logits, out.logits)
    assert torch.equal(loss, out.loss)


@pytest.mark.parametrize("kind", CONFIGS)
def test_weights_begin_as_he_initialisation_has_them(kind):
    for name, values in build(kind, num_labels=10).named_parameters():
        if values.dim() == 4:
            expected = (2 / (values.shape[0] * values.shape[2] * values.shape[3])) ** 0.5
            assert values.std().item() == pytest.approx(expected, rel=0.1), name
            assert abs(values.mean().item()) < expected / 10, name
        elif "classifier" not in name:
            assert torch.equal(values, torch.full_like(values, float(name.endswith("weight")))) or "bias" in name


@pytest.mark.parametrize("kind", CONFIGS)
def test_layout_of_the_images_in_memory_makes_no_difference(kind):
    model = build(kind, num_labels=3, **CONFIGS[kind]).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(images).logits, model(images.to(memory_format=torch.channels_last)).logits)


@pytest.mark.parametrize(
    ("kind", "options", "word"),
    [
        ("cifar_resnet", {"depths": [1, 1, 1]}, "as many"),
        ("cifar_resnet", {"depths": [0], "hidden_sizes": [8]}, "at least 1"),
        ("cifar_vgg", {"depths": [], "hidden_sizes": []}, "as many"),
        ("cifar_vgg", {"image_size": 8}, "image_size 32 or more"),
    ],
)
def test_config_that_cannot_be_built_is_refused(kind, options, word):
    with pytest.raises(ValueError, match=word):
        AutoConfig.for_model(kind, **options)


USER = """
import sys, torch
from safetensors.torch import save_file
from transformers import AutoModelForImageClassification, pipeline
picture, *folders = sys.argv[1:]
for folder in folders:
    try:
        AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        print("refused" if "trust_remote_code" in str(error) else error)
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
    torch.manual_seed(1)
    save_file({"logits": model(torch.randn(2, 3, 32, 32)).logits.detach()}, folder + "/logits.safetensors")
    print(pipeline("image-classification", model=folder, trust_remote_code=True)(picture)[0]["label"])
"""


def test_saved_models_load_with_their_code_where_the_examples_are_not(forks, tmp_path):
    picture, logits = tmp_path / "picture.png", {}
    Image.fromarray(np.full((32, 32, 3), 200, dtype=np.uint8)).save(picture)
    square = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = BitImageProcessorPil(**square, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    for kind, options in CONFIGS.items():
        model = build(kind, id2label={number: f"class {number}" for number in range(4)}, **options).eval()
        with torch.no_grad():
            model.classifier.bias[2] = 100
        model.save_pretrained(tmp_path / kind)
        processor.save_pretrained(tmp_path / kind)
        torch.manual_seed(1)
        logits[kind] = model(torch.randn(2, 3, 32, 32)).logits
    (tmp_path / "user.py").write_text(USER)
    user = forks.run("user.py", picture, *(tmp_path / kind for kind in CONFIGS), cwd=tmp_path)
    assert user.status == 0, user.output
    assert [line for line in user.output.splitlines() if line in ("refused", "class 2")] == ["refused", "class 2"] * 2
    for kind in CONFIGS:
        torch.testing.assert_close(load_file(tmp_path / kind / "logits.safetensors")["logits"], logits[kind])
