"""Small images, decoded once and kept as bytes, so that the data is not the bottleneck."""

import random
from typing import Any

import numpy as np
import torch
from datasets.utils import tqdm
from image_data import ImageDataset, draw_shift, fitted, margin_for, read_images
from PIL import Image


class CachedImages(ImageDataset):
    """An ImageDataset that gives the same pixels ten times as fast. It decodes all images when it is made.

    It holds one byte per pixel and channel. Not for `resized_crop_flip`, whose views are not of one size.
    """

    def __init__(self, data: Any, columns: tuple[str, str], processor: Any, mode: str, kind: str, seed: int) -> None:
        super().__init__(data, columns, processor, mode, kind, seed)
        self.channels = len(mode)
        self.table = self.normalised_bytes()
        self.pixels = np.empty((len(data), self.channels, self.views.height, self.views.width), dtype=np.uint8)
        self.labels: list[int] = []
        for start in tqdm(range(0, len(data), 500), desc="Decoding the images", disable=len(data) < 2000):
            indices = list(range(start, min(start + 500, len(data))))
            images, labels = read_images(data, indices, columns, mode)
            self.pixels[indices] = self.as_bytes(images)
            self.labels += labels

    def normalised_bytes(self) -> np.ndarray:
        """The value that the processor gives to each of the 256 values of each channel."""
        ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
        plain = {"do_resize": False, "do_center_crop": False}
        image = Image.merge(self.views.mode, [ramp] * self.channels)
        ready = self.views.processed([image], "np", **plain)
        return ready.reshape(self.channels, 256).astype(np.float32, copy=False)

    def as_bytes(self, images: list[Image.Image]) -> np.ndarray:
        """`images` at the size that the model sees, before any random view and normalisation."""
        if self.views.kind == "none":
            pixels = self.views(images, [], do_rescale=False, do_normalize=False)
            return pixels.numpy().astype(np.uint8, casting="safe")
        cut = [np.asarray(fitted(image, self.views.height, self.views.width)) for image in images]
        return np.stack(cut).reshape(len(cut), self.views.height, self.views.width, -1).transpose(0, 3, 1, 2)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        pixels = self.pixels[indices]
        if self.views.kind != "none":
            pixels = self.shifted(pixels, self.seeds(indices))
        ready = np.empty(pixels.shape, dtype=np.float32)
        for channel, values in enumerate(self.table):
            ready[:, channel] = values[pixels[:, channel]]
        labels = (self.labels[index] for index in indices)
        return [{"pixel_values": p, "labels": y} for p, y in zip(torch.from_numpy(ready), labels, strict=True)]

    def shifted(self, pixels: np.ndarray, seeds: list[str]) -> np.ndarray:
        height, width = pixels.shape[2:]
        margin = margin_for(height, width)
        framed = np.pad(pixels, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
        for place, seed in enumerate(seeds):
            left, top, mirrored = draw_shift(margin, self.views.kind, random.Random(seed))
            view = framed[place, :, top : top + height, left : left + width]
            pixels[place] = view[:, :, ::-1] if mirrored else view
        return pixels


def prepare_images(
    data: Any, columns: tuple[str, str], processor: Any, mode: str, kind: str, seed: int, cache_mb: int
) -> ImageDataset:
    """The images of `data` as input of the model, cached where the cache takes `cache_mb` megabytes at most.

    They are not cached where the cache would not give the same pixels as the processor.
    """

    def both(rows: Any) -> tuple[ImageDataset, ImageDataset]:
        options = (rows, columns, processor, mode, kind, seed)
        return ImageDataset(*options), CachedImages(*options)

    plain = ImageDataset(data, columns, processor, mode, kind, seed)
    height, width = plain.views.height, plain.views.width
    if kind == "resized_crop_flip" or None in (height, width):
        return plain
    if len(data) * len(mode) * height * width > cache_mb * 2**20:
        return plain
    try:
        some = range(min(4, len(data)))
        pairs = [dataset.__getitems__(list(some)) for dataset in both(data.select(some))]
    except (TypeError, ValueError):
        return plain
    if not all(torch.equal(one["pixel_values"], other["pixel_values"]) for one, other in zip(*pairs, strict=True)):
        return plain
    return CachedImages(data, columns, processor, mode, kind, seed)
