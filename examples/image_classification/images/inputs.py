"""Images as the input of a model: decoded when they are needed, decoded once and kept, or streamed."""

import itertools
import random
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import torch
from datasets.utils import tqdm
from errors.fail import first_line
from PIL import Image

from .decoding import BadData, cannot_decode, decode, read_images
from .views import Views, draw_shift, fitted, margin_for


class ImageDataset(torch.utils.data.Dataset):
    """Images as input of the model. Every random view follows from (seed, epoch, index) alone.

    So a resumed run sees the same images, and so does a run with another number of data workers or processes.

    Args:
        data: dataset with a column of images and one of labels.
        columns: names of the two.
        processor: image processor of the model.
        mode: `L` or `RGB`, what images are converted to.
        kind: one of AUGMENTATIONS but `auto`; with `none` the processor alone prepares the images.
        seed: of the random views.
    """

    def __init__(self, data: Any, columns: tuple[str, str], processor: Any, mode: str, kind: str, seed: int) -> None:
        self.data, self.columns, self.seed = data, columns, seed
        self.views = Views(processor, mode, kind)
        # Shared memory: data workers that outlive an epoch must see the new number too.
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()

    def __len__(self) -> int:
        return len(self.data)

    def seeds(self, indices: list[int]) -> list[str]:
        epoch = int(self.epoch)
        return [f"{self.seed} {epoch} {index}" for index in indices]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        images, labels = read_images(self.data, indices, self.columns, self.views.mode)
        pixels = self.views(images, self.seeds(indices))
        return [{"pixel_values": p, "labels": y} for p, y in zip(pixels, labels, strict=True)]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]


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
    options = (columns, processor, mode, kind, seed)
    plain = ImageDataset(data, *options)
    height, width = plain.views.height, plain.views.width
    if kind == "resized_crop_flip" or None in (height, width):
        return plain
    if len(data) * len(mode) * height * width > cache_mb * 2**20:
        return plain
    try:
        rows = list(range(min(4, len(data))))
        pairs = [cls(data.select(rows), *options).__getitems__(rows) for cls in (ImageDataset, CachedImages)]
    except (TypeError, ValueError):
        return plain
    if not all(torch.equal(one["pixel_values"], other["pixel_values"]) for one, other in zip(*pairs, strict=True)):
        return plain
    return CachedImages(data, *options)


class StreamedImages(torch.utils.data.IterableDataset):
    """A stream of images as input of the model. The order and each random view follow from the seed.

    For training the stream never ends: after the last image it starts again, in another order. So the number of steps
    alone decides how long a run is. A resumed run skips the steps that are done, and then sees the images that the
    uninterrupted run would see. Each data worker reads files of its own, so the order depends on their number.

    Args:
        data, columns, processor, mode, kind: as of ImageDataset, but `data` is a stream.
        seed: of the order and the random views.
        shuffle_buffer: number of encoded images from which the next one is drawn; None: in order, and once only.
    """

    def __init__(
        self,
        data: datasets.IterableDataset,
        columns: tuple[str, str],
        processor: Any,
        mode: str,
        kind: str,
        seed: int,
        shuffle_buffer: int | None,
    ) -> None:
        self.columns, self.seed, self.endless = columns, seed, shuffle_buffer is not None
        self.classes = data.features[columns[1]].num_classes
        self.views = Views(processor, mode, kind)
        encoded = data.cast_column(columns[0], datasets.Image(decode=False))
        self.data = encoded if shuffle_buffer is None else encoded.shuffle(seed, buffer_size=shuffle_buffer)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in itertools.count():
            self.data.set_epoch(number)
            empty = True
            for item in self.one_pass(number):
                empty = False
                yield item
            if empty or not self.endless:  # a worker for which there is no file would look for one for ever
                return

    def one_pass(self, number: int) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        prefix = f"{self.seed} {number} {0 if worker is None else worker.id}"
        rows, place = iter(self.data), 0
        # A few at a time, which the processor does faster than one by one.
        while chunk := self.next_rows(rows):
            images = [self.read(row, place + offset) for offset, row in enumerate(chunk)]
            pixels = self.views(images, [f"{prefix} {place + offset}" for offset in range(len(chunk))])
            for row, view in zip(chunk, pixels, strict=True):
                yield {"pixel_values": view, "labels": row[self.columns[1]]}
            place += len(chunk)

    def next_rows(self, rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
        try:
            return list(itertools.islice(rows, 16))
        except Exception as error:  # as many kinds as there are ways to read a stream
            line = f"the stream cannot be read: {first_line(error)}"
            raise BadData(f"{line}. To go on from the last checkpoint: --resume_from_checkpoint True") from error

    def read(self, row: dict[str, Any], place: int) -> Any:
        cell, label = (row[column] for column in self.columns)
        if label is None or not 0 <= label < self.classes:
            raise BadData(
                f"place {place} of the stream has the {self.columns[1]} {label}; the {self.classes} classes end at "
                f"{self.classes - 1}"
            )
        try:
            return decode(cell, self.views.mode)
        except Exception as error:  # as many kinds as there are image formats
            raise BadData(cannot_decode(f"place {place} of the stream", cell, error)) from error
