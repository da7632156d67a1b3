"""The checkpoints that the Trainer leaves in an output folder: which there are, and which can be resumed from."""

import json
from pathlib import Path

from errors.fail import fail


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    numbered = [(path.name.removeprefix("checkpoint-"), path) for path in folder.glob("checkpoint-*")]
    return [path for _, path in sorted((int(number), path) for number, path in numbered if number.isdigit())]


def is_complete(checkpoint: Path) -> bool:
    # The Trainer writes its state last, so a checkpoint cut short by a kill has none that can be read.
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def find_checkpoint(wanted: str | bool | None, folder: Path) -> str | None:
    """The checkpoint that --resume_from_checkpoint means: a path, or for True the last complete one in `folder`."""
    if wanted is None or str(wanted).lower() == "false":
        return None
    if str(wanted).lower() == "true":
        complete = [path for path in checkpoints_in(folder) if is_complete(path)]
        if not complete:
            fail(f"--resume_from_checkpoint True: {str(folder)!r} holds no complete checkpoint to go on from")
        return str(complete[-1])
    if not is_complete(Path(str(wanted))):
        fail(f"--resume_from_checkpoint {wanted!r} is no complete checkpoint: it has no trainer_state.json")
    return str(wanted)
