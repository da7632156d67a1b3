"""What a model sees of an image: a random view of it, or the whole."""

import math
import random
from typing import Any

import numpy as np
from PIL import Image, ImageOps


def fitted(image: Image.Image, height: int, width: int) -> Image.Image:
    """The largest central part of `image` with the proportions of `height` and `width`, resized to these."""
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)


def draw_shift(margin: int, kind: str, rng: random.Random) -> tuple[int, int, bool]:
    """Left and top of a random view in the image with a margin around it, and whether the view is mirrored."""
    left, top = rng.randint(0, 2 * margin), rng.randint(0, 2 * margin)
    if kind == "shift" and rng.random() >= 0.5:
        left = top = margin
    return left, top, kind.endswith("flip") and rng.random() < 0.5


def margin_for(height: int, width: int) -> int:
    return max(1, min(height, width) // 8)


def augment(image: Image.Image, height: int, width: int, kind: str, rng: random.Random) -> Image.Image:
    """A random view of `image`, `height` by `width` pixels."""
    if kind == "resized_crop_flip":
        # As wide a choice of windows as is usual for ImageNet: 8 to 100% of the area, sides from 3:4 to 4:3.
        area = image.width * image.height * rng.uniform(0.08, 1.0)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = min(image.width, math.sqrt(area * ratio)), min(image.height, math.sqrt(area / ratio))
        left, top = rng.uniform(0, image.width - w), rng.uniform(0, image.height - h)
        image = image.resize((width, height), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h))
        mirrored = rng.random() < 0.5
    else:
        margin = margin_for(height, width)
        x, y, mirrored = draw_shift(margin, kind, rng)
        image = ImageOps.expand(fitted(image, height, width), margin).crop((x, y, x + width, y + height))
    return ImageOps.mirror(image) if mirrored else image


class Views:
    """Turns images into the input of the model, as random views or as they are.

    Args:
        processor: image processor of the model.
        mode: `L` or `RGB`, what images are converted to.
        kind: one of AUGMENTATIONS but `auto`; with `none` the processor alone prepares the images.
    """

    def __init__(self, processor: Any, mode: str, kind: str) -> None:
        self.processor, self.mode, self.kind = processor, mode, kind
        size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
        edge = size.get("shortest_edge")
        self.height, self.width = size.get("height", edge), size.get("width", edge)
        # Whether an image of just this size would be resized and cropped to itself.
        self.keeps_size = size is processor.size or {self.height, self.width} == {processor.size.get("shortest_edge")}

    def __call__(self, images: list[Image.Image], seeds: list[str], **options: Any) -> Any:
        """The pixels of `images`. Each random view follows from its seed; `options` are given to the processor."""
        ready = self.keeps_size and all(image.size == (self.width, self.height) for image in images)
        if self.kind != "none":
            images = [
                augment(image, self.height, self.width, self.kind, random.Random(seed))
                for image, seed in zip(images, seeds, strict=True)
            ]
            ready = True
        if ready:
            options |= {"do_resize": False, "do_center_crop": False}
        return self.processed(images, "pt", **options)

    def processed(self, images: list[Image.Image], kind: str, **options: Any) -> Any:
        """What the processor makes of `images`, as tensors of that kind."""
        given: list[Any] = images
        if self.mode == "L":
            given = [np.asarray(image)[None] for image in images]  # transformers 5.2 needs to be shown the one channel
        return self.processor(given, return_tensors=kind, **options)["pixel_values"]
