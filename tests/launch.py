"""Starts a script on several processes, and leaves none behind."""

import os
import subprocess
import sys
from typing import NamedTuple


class Result(NamedTuple):
    returncode: int
    output: str


def torchrun(processes, script, *arguments, cwd=None, env=None, timeout=240):
    """Run `torchrun --nproc_per_node PROCESSES SCRIPT ARGUMENTS` to its end; stdout and stderr are one output."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    launcher = subprocess.Popen(
        [*command, str(script), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = launcher.communicate(timeout=timeout)
    finally:
        if launcher.poll() is None:
            launcher.terminate()  # the launcher ends its workers, which are no process group of its own, before itself
            try:
                launcher.communicate(timeout=40)
            except subprocess.TimeoutExpired:
                launcher.kill()
                launcher.communicate()
    return Result(launcher.returncode, output)
