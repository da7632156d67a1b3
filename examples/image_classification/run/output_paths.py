"""Whether a run can write to the places that it is given. They are tried before anything is loaded."""

import os
import shutil
import tempfile
from pathlib import Path

from errors.fail import fail


def why_not_writable(folder: str | Path) -> str | None:
    """Why no file can be written into `folder`, which need not be there yet; None if one can."""
    path = os.path.normpath(folder)
    missing: list[str] = []
    while not os.path.lexists(path):
        path, name = os.path.split(path)
        missing.insert(0, name)
        path = path or os.curdir
    if not os.path.isdir(path):
        return f"{path!r} is {'not a folder' if os.path.exists(path) else 'a link to nothing'}"
    try:
        # In a folder of its own, so that several processes can try at once. Permissions alone would not show it: they
        # do not bind root, and not every file system can be written to.
        trial = tempfile.mkdtemp(prefix=".trial-", dir=path)
    except OSError as error:
        return f"{error.strerror} in {path!r}"
    try:
        inner = Path(trial, *missing)
        inner.mkdir(parents=True, exist_ok=True)
        (inner / "file").write_bytes(b"1")
    except (OSError, ValueError) as error:
        return f"{getattr(error, 'strerror', None) or error} in {path!r}"
    finally:
        shutil.rmtree(trial, ignore_errors=True)
    return None


def check_output_folder(option: str, folder: str | Path) -> None:
    """End the run with one line where no file can be written into the folder that `option` names."""
    problem = why_not_writable(folder) if str(folder) else "the name is empty"
    if problem is not None:
        # Each machine has folders of its own, and reports them once.
        once = os.environ.get("LOCAL_RANK", "0") == "0"
        fail(f"{option} {str(folder)!r} cannot be written to: {problem}. Name a folder that can be written to", once)


def check_cache_folder(option: str, folder: str | Path | None) -> None:
    """As `check_output_folder`, but a folder that is there is accepted: a filled cache need not be written to."""
    if folder is not None and not Path(folder).expanduser().is_dir():
        check_output_folder(option, Path(folder).expanduser())
