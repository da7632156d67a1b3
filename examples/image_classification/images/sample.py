"""What the images are like, from a sample drawn over all of them."""

import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import datasets
import numpy as np
from errors.fail import first_line
from PIL import Image

from .arguments import SMALL_SIDE
from .decoding import SKIP, BadData, cannot_decode, decode

LOOKED_AT = 128
PARTS = 16  # of a stream; each takes a file to open


@dataclass(frozen=True)
class Sample:
    """What some of the images are like.

    Attributes:
        sides: the shorter side of each, in pixels, in order.
        grey: how many of them are grey, be it in three like channels.
        drawn: of how many, in words.
        transparent: how many are transparent somewhere, where a model sees the colour that lies below.
    """

    sides: list[int]
    grey: int
    drawn: str = "images"
    transparent: int = 0

    @classmethod
    def of(cls, images: Iterable[Image.Image], drawn: str = "images") -> "Sample":
        seen = [(min(image.size), is_grey(image), is_transparent(image)) for image in images]
        sides = sorted(side for side, _, _ in seen)
        return cls(sides, sum(grey for _, grey, _ in seen), drawn, sum(transparent for _, _, transparent in seen))

    @property
    def side(self) -> int:
        """The side that half of the images reach."""
        return statistics.median_low(self.sides)

    @property
    def are_grey(self) -> bool:
        return self.grey == len(self.sides)

    @property
    def are_small(self) -> bool:
        return self.side <= SMALL_SIDE

    def __str__(self) -> str:
        low, high = self.sides[0], self.sides[-1]
        sides = f"sides of {low}" if low == high else f"shorter sides of {low} to {high}, median {self.side}"
        colours = {0: "none grey", len(self.sides): "all grey"}.get(self.grey, f"{self.grey} grey")
        if self.transparent:
            colours += f", {self.transparent} transparent in parts, where the colour below is used"
        return f"looked at {len(self.sides)} {self.drawn}: {sides}, {colours}"


UNSEEN = Sample([], 0)


def is_grey(image: Image.Image) -> bool:
    red, green, blue = (channel.tobytes() for channel in image.convert("RGB").split())
    return red == green == blue


def is_transparent(image: Image.Image) -> bool:
    has_alpha = image.getbands()[-1] in "Aa" or "transparency" in image.info
    return has_alpha and bool(np.asarray(image.convert("RGBA"))[..., 3].min() < 255)


def look_at(data: datasets.Dataset | datasets.IterableDataset, column: str) -> Sample:
    """A sample of the images in `column`: always the same, and as evenly from all of `data` as can be.

    Raises:
        BadData: one of them cannot be decoded; names it.
    """
    is_stream = isinstance(data, datasets.IterableDataset)
    encoded = data.cast_column(column, datasets.Image(decode=False)).select_columns(column)
    drawn = "images of a stream" if is_stream else f"of {len(encoded):,} images"
    cells = from_stream(encoded, column) if is_stream else from_table(encoded, column)
    remedy = "" if is_stream else SKIP
    sample = Sample.of((decoded(where, cell, remedy) for where, cell in cells), drawn)
    if not sample.sides:
        raise BadData("the dataset has no images")
    return sample


def from_table(data: datasets.Dataset, column: str) -> Iterator[tuple[str, Any]]:
    """One image at random from each of as many equal parts of `data`."""
    rng = np.random.default_rng(42)  # whatever --seed is: seeds are compared on one model
    bounds = np.linspace(0, len(data), min(LOOKED_AT, len(data)) + 1).astype(int)
    for row in (int(rng.integers(*part)) for part in pairwise(bounds)):
        yield f"row {row}", data[row][column]


def from_stream(data: datasets.IterableDataset, column: str) -> Iterator[tuple[str, Any]]:
    """The first images of some of the parts that `data` is read in: of 16, or of more where these hold few."""
    count, left = data.num_shards, LOOKED_AT
    each = math.ceil(LOOKED_AT / min(PARTS, count))
    for part in np.random.default_rng(42).permutation(count).tolist():
        try:
            for number, row in enumerate(data.shard(count, part).take(min(each, left))):
                yield f"row {number} of {f'part {part} of ' if count > 1 else ''}the stream", row[column]
                left -= 1
        except Exception as error:  # as many kinds as there are ways to read one
            raise BadData(f"the stream cannot be read: {first_line(error)}") from error
        if left == 0:
            return


def decoded(where: str, cell: Any, remedy: str) -> Image.Image:
    try:
        return decode(cell)
    except Exception as error:  # as many kinds as there are image formats
        raise BadData(cannot_decode(where, cell, error, remedy)) from error
