"""The folder for the results of a benchmark, made before anything is measured."""

import argparse
import tempfile
from pathlib import Path


def make_folder(parser: argparse.ArgumentParser, option: str, folder: Path) -> None:
    """Make `folder`, and end the program with one line that names `option` if no file can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        parser.error(f"{option} {folder}: {error.strerror}; name a folder that can be written to")
