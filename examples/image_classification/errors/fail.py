"""A mistake ends the run with one line."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn


def fail(message: str, anywhere: bool = False) -> NoReturn:
    """End the run with one line. The first process prints it; with `anywhere`, whichever process meets the mistake."""
    if anywhere or int(os.environ.get("RANK", "0")) == 0:
        print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def warn(message: str) -> None:
    """Print one line and go on. The first process prints it."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"warning: {message}", file=sys.stderr)


@contextmanager
def refused_in_one_line(what: str = "", *, by: tuple[type[Exception], ...] = (ValueError,)) -> Iterator[None]:
    """End the run with one line, which begins with `what`, where a value is refused by an error of the kinds `by`."""
    try:
        yield
    except by as error:
        fail(what + " ".join(str(error).split()))


def lines_of(error: BaseException) -> list[str]:
    """The lines of its message, of which there is one at least."""
    return str(error).strip().splitlines() or [type(error).__name__]


def first_line(error: BaseException) -> str:
    return lines_of(error)[0]


def last_line(error: BaseException) -> str:
    return lines_of(error)[-1].strip()
