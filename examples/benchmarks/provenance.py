"""Where a result comes from: what every results file of these benchmarks records."""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent


def provenance(script: str, packages: Iterable[str], device: torch.device | None = None) -> dict[str, Any]:
    """The command, the commit, the versions, the device and the number of threads of this run.

    Args:
        script: name of the script in this folder; its arguments are those of this process. Of an absolute path only
            the last part is recorded: the rest is of this machine, and tells nobody else anything.
        packages: names of the installed packages whose versions matter, besides python, torch and hf-lpsgd.
        device: what was measured. Default: a GPU, where there is one.
    """
    on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    status = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "command": shlex.join(["python", f"examples/benchmarks/{script}", *map(_without_folder, sys.argv[1:])]),
        "commit": _git("rev-parse", "HEAD") + (" and uncommitted changes" if status else ""),
        "versions": {
            "python": platform.python_version(),
            **{name: found for name in ("hf-lpsgd", "torch", *packages) if (found := _version(name))},
        },
        "device": torch.cuda.get_device_name(device) if on_gpu else cpu_name(),
        "threads": torch.get_num_threads(),
    }


def cpu_name() -> str:
    """The processor's name, its number of cores, and the best instruction set that torch uses of it."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    capability = torch.backends.cpu.get_cpu_capability()
    return f"CPU, {found.group(1) if found else name}, {os.cpu_count()} cores, {capability}"


def _without_folder(argument: str) -> str:
    flag, _, value = argument.rpartition("=")
    name = Path(value).name if Path(value).is_absolute() else value
    return f"{flag}={name}" if flag else name


def _git(*arguments: str) -> str:
    if shutil.which("git") is None:
        return ""
    return subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
