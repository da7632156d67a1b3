"""Decoding images, the errors of bad ones, and how --on_bad_image skip leaves these out."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import datasets
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets.utils import tqdm
from errors.fail import fail, first_line, last_line
from PIL import Image

NAMED = 5  # in the log
AT_ONCE = 256
SKIP = "; --on_bad_image skip leaves such images out"


class BadData(Exception):
    """An image or a label that the model cannot be trained on."""

    @property
    def line(self) -> str:
        # A data worker sends its whole traceback as the message, which ends with the message proper.
        return last_line(self).rpartition(f"{type(self).__name__}: ")[2]


class NotEightBit(ValueError):
    """An image with more than 8 bits per value, which Pillow would convert to other pixels without a warning."""


def converted(image: Image.Image, mode: str | None) -> Image.Image:
    """`image` in `mode`; as it is with None."""
    if image.mode.startswith(("I", "F")):
        raise NotEightBit(
            f"has the mode {image.mode}, of 16 or 32 bits per value: convert the images to 8 bits (mode L or RGB)"
        )
    return image if mode is None else image.convert(mode)


def decode(cell: dict[str, Any], mode: str | None = None) -> Image.Image:
    """The image in `cell`, which holds it encoded."""
    return converted(datasets.Image().decode_example(cell), mode)


def read_images(data: datasets.Dataset, indices: list[int], columns: tuple[str, str], mode: str) -> tuple[list, list]:
    """The images and labels of the rows `indices`.

    Raises:
        BadData: one of the images cannot be decoded; names it.
    """
    image, label = columns
    try:
        rows = data[indices]
        return [converted(cell, mode) for cell in rows[image]], rows[label]
    except Exception:  # as many kinds as there are image formats
        encoded = data.cast_column(image, datasets.Image(decode=False))
        for index in indices:
            cell = encoded[index][image]
            try:
                decode(cell, mode)
            except Exception as error:
                raise BadData(cannot_decode(f"row {index}", cell, error, SKIP)) from error
        raise


def cannot_decode(where: str, cell: Any, error: Exception, remedy: str = "") -> str:
    if cell is None:
        return f"there is no image in {where}{remedy}"
    file = f" ({cell['path']})" if cell.get("path") else ""
    if isinstance(error, NotEightBit):
        return f"the image in {where}{file} {error}"
    # Where the image is no file, the message names an object in memory, which helps nobody.
    reason = type(error).__name__ if "BytesIO" in str(error) else first_line(error)
    return f"the image in {where}{file} cannot be decoded: {reason}{remedy}"


class Bad(NamedTuple):
    """An image that cannot be used: its row, why, and whether it could be decoded."""

    row: int
    why: str
    decodable: bool


def without_bad_images(data: datasets.Dataset, column: str, purpose: str) -> tuple[datasets.Dataset, int]:
    """`data` without the images that cannot be decoded, and their number; the first process prints it.

    All images are decoded once, each process a part of them. All processes get the same images, even where one of
    them met an error that another would not meet.

    Raises:
        BadData: an image can be decoded but has more than 8 bits per value.
    """
    state = PartialState()
    part = range(state.process_index, len(data), state.num_processes)
    found = sorted(Bad(*one) for one in gather_object([tuple(one) for one in bad_images(data, column, part)]))
    for bad in found:
        if bad.decodable:
            raise BadData(bad.why)
    if not found:
        return data, 0
    if len(found) == len(data):
        fail(f"--on_bad_image skip leaves no images to {purpose}; the first: {found[0].why}")
    if state.is_main_process:
        print(f"left out {len(found):,} of {len(data):,} images to {purpose}, which cannot be decoded:")
        for bad in found[:NAMED]:
            print(f"  {bad.why}")
        if len(found) > NAMED:
            print(f"  and {len(found) - NAMED:,} more")
    rows = {bad.row for bad in found}
    return data.select([row for row in range(len(data)) if row not in rows]), len(found)


def bad_images(data: datasets.Dataset, column: str, rows: range) -> list[Bad]:
    """Those of the images in `rows` that cannot be used."""
    encoded = data.cast_column(column, datasets.Image(decode=False))

    def examine(row: int, cell: Any) -> Bad | None:
        try:
            decode(cell, "RGB")
        except Exception as error:  # as many kinds as there are image formats
            return Bad(row, cannot_decode(f"row {row}", cell, error), isinstance(error, NotEightBit))
        return None

    found: list[Bad] = []
    with ThreadPoolExecutor() as pool:
        for start in tqdm(range(0, len(rows), AT_ONCE), desc="Examining the images", disable=len(rows) < 2000):
            some = rows[start : start + AT_ONCE]
            found += filter(None, pool.map(examine, some, encoded[some][column]))
    return found
