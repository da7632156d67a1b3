"""Images that cannot be decoded, and how they are left out with --on_bad_image skip."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import datasets
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets.utils import tqdm
from errors.fail import fail
from image_data import BadData, NotEightBit, cannot_decode, decode

NAMED = 5  # in the log
AT_ONCE = 256


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
