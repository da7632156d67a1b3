"""The command that started a run, fit to be shown: as typed where that can be found out, and without secrets."""

import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_SECRET = "***"
_ELSEWHERE = "..."
# Scripts and modules that start others, by their names on the command line.
_LAUNCHERS = {"accelerate", "torchrun", "deepspeed"}
_LAUNCHER_MODULES = {"torch.distributed.run", "accelerate.commands.launch", "accelerate.commands.accelerate_cli"}


@dataclass(frozen=True)
class Command:
    """A command in one line, and whether it is the one that was typed."""

    line: str
    is_typed: bool


def command_of(argv: Sequence[str], secrets: Iterable[str | None] = ()) -> Command:
    """The command that started this process.

    Args:
        argv: the script and its arguments, as in `sys.argv`.
        secrets: strings that must not be shown, wherever they stand.
    """
    typed = _launcher_command(argv)
    launched = _by_accelerate() or "WORLD_SIZE" in os.environ
    if typed is None and not launched and _ends_with(sys.orig_argv, argv):
        typed = [*sys.orig_argv[: -len(argv)], *_runner(), *argv]
    words = [*_equivalent_start(), *argv] if typed is None else typed
    start = len(words) - len(argv)
    shown = [Path(words[0]).name if start and os.path.isabs(words[0]) else words[0]]
    hide = False
    for position, word in enumerate(words[1:], 1):
        flag = word.partition("=")[0]
        if position == start or flag.startswith("-"):
            hide = position != start and _names_a_secret(flag)
        if not hide:
            shown.append(_shown_word(word))
    line = without_secrets(" ".join(map(_quoted, shown)), secrets)
    return Command(line, typed is not None and line == shlex.join(words))


def _quoted(word: str) -> str:
    return f"~/{shlex.quote(word[2:])}" if word.startswith("~/") and word != "~/" else shlex.quote(word)


def _ends_with(command: Sequence[str], argv: Sequence[str]) -> bool:
    return 0 < len(argv) < len(command) and list(command[-len(argv) :]) == list(argv)


def _runner() -> list[str]:
    """What `python -m hf_lpsgd` had before the script, which it then runs as if it had not been there."""
    folders = map(Path, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    is_there = any(folder.parts[-2:] == ("hf_lpsgd", "children") for folder in folders)
    return ["-m", "hf_lpsgd"] if is_there else []


def _by_accelerate() -> bool:
    return "ACCELERATE_DYNAMO_USE_FULLGRAPH" in os.environ  # which `accelerate launch` alone sets, and always


def _launcher_command(argv: Sequence[str]) -> list[str] | None:
    """The command of the launcher that started this process, where the system shows it."""
    process, found = os.getppid(), None
    for _ in range(8):
        command, process = _process(process)
        if not _ends_with(command, argv):
            break
        found = _launched_by(command) or found
    return found


def _launched_by(command: Sequence[str]) -> list[str] | None:
    """`command` as one types it, if it is that of a launcher."""
    if Path(command[0]).name.startswith("python") and len(command) > 2:
        if Path(command[1]).name in _LAUNCHERS:
            return [Path(command[1]).name, *command[2:]]
        if command[1] == "-m" and command[2] in _LAUNCHER_MODULES:
            return list(command)
    return [Path(command[0]).name, *command[1:]] if Path(command[0]).name in _LAUNCHERS else None


def _process(number: int) -> tuple[list[str], int]:
    """The command of a process and its parent's number; nothing where the system does not show them."""
    try:
        command = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")[:-1]
        status = Path(f"/proc/{number}/stat").read_text(errors="replace")
        return [os.fsdecode(word) for word in command], int(status.rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return [], 0


def _equivalent_start() -> list[str]:
    """How a run like this one can be started, as far as the environment shows."""
    processes, here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    machines = max(1, processes // max(here, 1))
    if _by_accelerate():
        kind = []
        if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
            stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
            kind = ["--use_deepspeed", *(["--zero_stage", stage] if stage else [])]
        elif os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
            kind = ["--use_fsdp", "--fsdp_version", os.environ.get("FSDP_VERSION", "1")]
        nodes = ["--num_machines", str(machines)] if machines > 1 else []
        return ["accelerate", "launch", *kind, *nodes, "--num_processes", str(processes)]
    if processes > 1:
        return ["torchrun", *(["--nnodes", str(machines)] if machines > 1 else []), "--nproc_per_node", str(here)]
    return ["python"]


def _shown_word(word: str) -> str:
    """An argument, with a path in the current folder relative to it, and without the name of any home folder."""
    flag, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    return flag + equals + shown_path(value)


def shown_path(path: str) -> str:
    """A path as it may be shown: relative to the current folder where it lies in it, and with homes as `~`."""
    if os.path.isabs(path):
        for here in {os.getcwd(), os.path.realpath(os.getcwd())}:
            relative = os.path.relpath(path, here)
            if here != os.sep and relative.split(os.sep)[0] != os.pardir:
                return relative
    return without_homes(path)


def _homes() -> list[str]:
    homes = {os.path.expanduser("~"), os.path.realpath(os.path.expanduser("~"))}
    return sorted((home for home in homes if os.path.isabs(home) and home != os.sep), key=len, reverse=True)


def without_homes(text: str) -> str:
    """`text` with this user's home folder as `~`, and with other users' folders as `...`."""
    for home in _homes():
        text = re.sub(rf"(?<![\w.-]){re.escape(home)}(?![\w-]|\.\w)", "~", text)
    return re.sub(r"(?<![\w.~/-])/(?:home|Users)/[^/\s\"',:;]+|(?<![\w.~/-])/root(?![\w.-])", _ELSEWHERE, text)


def _names_a_secret(name: str) -> bool:
    return re.search(r"(^|[-_])(token|password|passwd|secret|api[-_]?key)$", name, re.IGNORECASE) is not None


def without_secrets(text: str, secrets: Iterable[str | None] = ()) -> str:
    """`text` without `secrets`, without what looks like a token of the Hub, and without passwords in addresses."""
    for secret in filter(None, secrets):
        text = text.replace(secret, _SECRET)
    text = re.sub(r"(://)[^/@\s'\"]+@", rf"\1{_SECRET}@", text)
    return re.sub(r"hf_[A-Za-z0-9]{20,}", _SECRET, text)


def without_secret_entries(text: str, secrets: Iterable[str | None] = ()) -> str:
    """The text of a .yaml or .json file without homes and secrets, whether the name of an entry says so or not."""

    def hidden(match: re.Match[str]) -> str:
        return match[1] + _SECRET if _names_a_secret(match[2]) else match[0]

    entry = r"""((?:["']|\b)([\w-]+)["']?\s*:\s*)("[^"\n]*"|'[^'\n]*'|[^\s,}{\[\]]+)"""
    return without_homes(without_secrets(re.sub(entry, hidden, text), secrets))
