"""The images as a model sees them: random views that can be made again, and images as they are."""

import random

import numpy as np
import pytest
import torch
from images.inputs import ImageDataset
from images.sources import load_digits
from images.views import augment
from PIL import Image


@pytest.fixture(scope="module")
def views():
    """Makes the digits' training images as the model gets them, with a kind of random view and a seed."""
    from pil_processors import BitImageProcessorPil

    processor = BitImageProcessorPil(
        size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5]
    )
    processor.do_convert_rgb = False
    data = load_digits()["train"].select(range(40))

    def make(kind, seed=0):
        return ImageDataset(data, ("image", "label"), processor, "L", kind, seed)

    return make


def pixels(dataset, indices):
    return torch.stack([item["pixel_values"] for item in dataset.__getitems__(list(indices))])


def test_random_views_follow_from_seed_epoch_and_index_alone(views):
    one, again, other_seed = views("shift"), views("shift"), views("shift", seed=1)
    random.seed(5)
    torch.manual_seed(5)
    first = pixels(one, range(40))
    alone = torch.stack([again[index]["pixel_values"] for index in reversed(range(40))]).flip(0)
    assert torch.equal(first, alone)
    assert not torch.equal(first, pixels(other_seed, range(40)))
    one.epoch.fill_(1)
    assert not torch.equal(first, pixels(one, range(40)))
    one.epoch.fill_(0)
    assert torch.equal(first, pixels(one, range(40)))


def test_evaluation_sees_the_images_as_they_are(views):
    from sklearn.datasets import load_digits

    shown = pixels(views("none"), range(40))[:, 0].double()
    grey = torch.tensor(np.rint(load_digits().images * 255 / 16)) / 255
    for image in shown:
        assert (grey * 2 - 1 - image).abs().amax(dim=(1, 2)).min() < 1e-6


def test_images_of_the_right_size_skip_resizing_without_a_difference():
    import datasets
    from pil_processors import BitImageProcessorPil, ViTImageProcessorPil

    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)) for _ in range(3)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(2)})
    data = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 0]}, features=features)
    square = {"height": 12, "width": 12}
    for processor, keeps_size in (
        (BitImageProcessorPil(size={"shortest_edge": 12}, crop_size=square), True),
        (BitImageProcessorPil(size={"shortest_edge": 16}, crop_size=square), False),
        (ViTImageProcessorPil(size=square), True),
    ):
        dataset = ImageDataset(data, ("image", "label"), processor, "RGB", "none", 0)
        assert dataset.views.keeps_size is keeps_size
        assert torch.equal(pixels(dataset, range(3)), processor(images, return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("kind", ["shift", "shift_flip", "resized_crop_flip"])
@pytest.mark.parametrize("size", [(8, 8), (50, 31), (20, 90)])
def test_random_views_have_the_size_asked_for_and_differ(kind, size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    shown = [augment(image, 12, 16, kind, random.Random(seed)) for seed in range(20)]
    assert {view.size for view in shown} == {(16, 12)}
    assert len({view.tobytes() for view in shown}) > 5
