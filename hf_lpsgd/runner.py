"""Run any command with `lpsgd` and `lpsgdm` known to the Trainer, in its process and in all Pythons that it starts.

This process becomes the command. So arguments, streams, signals and exit status are the command's own. It is given one
thing, a folder at the front of PYTHONPATH: see hf_lpsgd/children/sitecustomize.py.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # that of `typing`, which takes as long to import as Python to start
if TYPE_CHECKING:
    from typing import NoReturn

USAGE = "usage: python -m hf_lpsgd SCRIPT [ARGUMENT ...] | -m MODULE [ARGUMENT ...] | COMMAND [ARGUMENT ...] | --env\n"

HELP = f"""{USAGE}
Run a Python script, directory, zip file or module, or any other command, unchanged. "lpsgd" and "lpsgdm" are known to
the transformers Trainer in it, and in each Python that it starts. --env prints the versions and devices that a bug
report needs. hf-lpsgd-run is another name of python -m hf_lpsgd.

examples:
  python -m hf_lpsgd train.py --optim lpsgdm --optim_args p_max=20,p_schedule=cosine
  python -m hf_lpsgd trl sft --optim lpsgdm --config sft.yaml
  torchrun --nproc_per_node 2 -m hf_lpsgd train.py --optim lpsgdm
  accelerate launch -m hf_lpsgd train.py --optim lpsgdm
"""


def main() -> None:
    """Replace this process by what `sys.argv` names."""
    arguments = sys.argv[1:]
    # deepspeed and torch.distributed.launch put it before the name of what they start.
    of_launcher = [one for one in arguments[:1] if one.startswith(("--local_rank=", "--local-rank="))]
    program, *arguments = arguments[len(of_launcher) :] or [""]
    if program in ("-h", "--help"):
        print(HELP, end="")
        return
    if program == "--env":
        from hf_lpsgd.environment import describe_environment

        print(describe_environment())
        return
    if not program or (program == "-m" and not arguments):
        _fail("-m needs the name of a module" if program else "name a script, a module or a command")
    if program.startswith("-") and not program.startswith("-m"):
        _fail(f"unknown option {program!r}: the options of a script or a command come after its name")
    if sys.flags.ignore_environment or sys.flags.no_site:
        _fail("Python's options -E, -I and -S would hide the optimizers from what is started: leave them out")
    line, is_python = [program], True
    if program == "-m":
        line.append(arguments.pop(0))
    elif not program.startswith("-m"):
        line[0], is_python = _found(program)
    _become([*_interpreter(), *line] if is_python else line, is_python, [*of_launcher, *arguments])


def _fail(message: str) -> NoReturn:
    print(f"{USAGE}hf_lpsgd: error: {message}", file=sys.stderr)
    sys.exit(2)


def _become(line: list[str], is_python: bool, arguments: list[str]) -> NoReturn:
    path, children = os.environ.get("PYTHONPATH") or "", os.path.join(os.path.dirname(__file__), "children")
    if path.split(os.pathsep)[0] != children:
        path = os.pathsep.join(filter(None, (children, path)))
    if not is_python:
        import signal

        for name in ("SIGPIPE", "SIGXFSZ"):  # which Python ignores, and a command would inherit that
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_DFL)
    file = sys.executable if is_python else line[0]
    try:
        os.execve(file, [*line, *arguments], {**os.environ, "PYTHONPATH": path})
    except OSError as error:
        _fail(f"cannot start {file}, or the program in its first line: {error.strerror}")


def _found(program: str) -> tuple[str, bool]:
    """Return the path of a script or a command, and whether this interpreter runs it."""
    is_path = os.path.basename(program) != program or os.path.isfile(program)
    if not is_path and not os.path.isfile(os.path.join(program, "__main__.py")):
        from shutil import which

        if command := which(program, path=os.path.dirname(sys.executable)) or which(program):
            return command, False
        if not os.path.exists(program) and not program.endswith(".py"):
            _fail(f"{program!r} is no file here, and no command beside {sys.executable} or on PATH")
    # Where there is nothing to run, the interpreter says so.
    is_command = os.path.isfile(program) and os.access(program, os.X_OK)
    return program, not is_command or program.endswith((".py", ".pyc", ".pyz", ".zip"))


def _interpreter() -> list[str]:
    """Return how this interpreter was started, with its options, up to `-m hf_lpsgd` or the file of hf-lpsgd-run."""
    *started, last = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    if last != sys.argv[0]:
        flags = last[: -len("hf_lpsgd")] if last.startswith("-") else started.pop()
        started += [flags[:-1]] if len(flags) > len("-m") else []
    return started
