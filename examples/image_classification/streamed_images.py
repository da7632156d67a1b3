"""Streamed images: read when they are needed, in an order that follows from a seed."""

import itertools
from collections.abc import Iterator
from typing import Any

import datasets
import torch
from datasets import IterableDataset as Stream
from errors.fail import fail
from errors.nearest import did_you_mean
from image_data import BadData, DataArguments, Views, cannot_decode, decode


def choose_streams(
    splits: datasets.IterableDatasetDict, args: DataArguments, columns: tuple[str, str], do_train: bool, do_eval: bool
) -> tuple[Stream | None, Stream | None]:
    """The streams to train and to evaluate on; None where not asked for."""
    available = ", ".join(splits)
    if not isinstance(next(iter(splits.values())).features[columns[1]], datasets.ClassLabel):
        fail(
            f"--streaming needs a label column that lists its classes, and {columns[1]!r} does not: leave the flag out"
        )

    def stream(name: str | None, option: str, limit: int | None) -> Stream:
        if name not in splits:
            guess = did_you_mean(name, splits)
            fail(f"{option} {name!r}: the dataset has no such split.{guess} Its splits: {available}")
        return splits[name] if limit is None else splits[name].take(limit)

    train = stream(args.train_split_name, "--train_split_name", args.max_train_samples) if do_train else None
    if not do_eval:
        return train, None
    name = args.eval_split_name or next((name for name in ("validation", "test") if name in splits), None)
    if name is None:
        fail(f"--streaming cannot hold out images: name a split with --eval_split_name; the splits: {available}")
    return train, stream(name, "--eval_split_name", args.max_eval_samples)


class StreamedImages(torch.utils.data.IterableDataset):
    """A stream of images as input of the model. The order and each random view follow from the seed.

    For training the stream never ends: after the last image it starts again, in another order. So the number of steps
    alone decides how long a run is. A resumed run skips the steps that are done, and then sees the images that the
    uninterrupted run would see. Each data worker reads files of its own, so the order depends on their number.

    Args:
        data: stream with a column of images and one of labels.
        columns: names of the two.
        processor: image processor of the model.
        mode: `L` or `RGB`, what images are converted to.
        kind: one of AUGMENTATIONS but `auto`; with `none` the processor alone prepares the images.
        seed: of the order and the random views.
        shuffle_buffer: number of encoded images from which the next one is drawn; None: in order, and once only.
    """

    def __init__(
        self,
        data: Stream,
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
        while chunk := list(itertools.islice(rows, 16)):
            images = [self.read(row, place + offset) for offset, row in enumerate(chunk)]
            pixels = self.views(images, [f"{prefix} {place + offset}" for offset in range(len(chunk))])
            for row, view in zip(chunk, pixels, strict=True):
                yield {"pixel_values": view, "labels": row[self.columns[1]]}
            place += len(chunk)

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
