"""Runs programs under the runner, and without it."""

import importlib.util
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launch import python

PACKAGE = Path(importlib.util.find_spec("hf_lpsgd").origin).parent
CHILDREN = PACKAGE / "children"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
ENVIRONMENT["PYTHONPATH"] = str(PACKAGE.parent)
# Whether a program is reached: the optimizers are registered when transformers is imported.
REACHED = "any(type(finder).__module__ == 'hf_lpsgd.import_hook' for finder in sys.meta_path)"


def under_the_runner(folder, *arguments, options=(), **variables):
    """Run `python -m hf_lpsgd ARGUMENTS` in a folder."""
    return python(folder, *options, "-m", "hf_lpsgd", *arguments, env={**ENVIRONMENT, **variables})


def run_both(folder, *arguments, options=(), **variables):
    """Run `python ARGUMENTS` in a folder without and with the runner, and return what both alike gave."""
    with ThreadPoolExecutor() as pool:
        plain = pool.submit(python, folder, *options, *arguments, env={**ENVIRONMENT, **variables})
        under = pool.submit(under_the_runner, folder, *arguments, options=options, **variables)
    assert under.result() == plain.result()
    return plain.result()
