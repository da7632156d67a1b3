"""Starts a script on several processes, and leaves none behind."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from paths import LEAVE


class Result(NamedTuple):
    returncode: int
    output: str


def torchrun(processes, script, *arguments, cwd=None, env=None, timeout=240):
    """Run `torchrun --nproc_per_node PROCESSES SCRIPT ARGUMENTS` to its end; stdout and stderr are one output.

    Processes that have done their work leave as leave.py says.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += [str(LEAVE), str(script), *map(str, arguments)]
    return run_to_end(command, cwd=cwd, env={"OMP_NUM_THREADS": "1", **(env or {})}, timeout=timeout)


def free_port():
    """A port for `accelerate launch --main_process_port`, where accelerate 1.3 takes 0 for the port itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def run_to_end(command, *, cwd=None, env=None, timeout=240):
    """Run a launcher of processes to its end, with `env` besides this environment; all output is one."""
    launcher = subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, **(env or {})},
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


class Finished(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def _obey_interrupts():
    """What a shell starts in the background ignores SIGINT, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def python(cwd, *arguments, env=None, timeout=60):
    """Run `python ARGUMENTS` in a folder to its end, with stdout and stderr apart."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        preexec_fn=_obey_interrupts,
        timeout=timeout,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


class ForkServer:
    """tests/examples/image_classification/server.py: imports a script once, and runs it in forks of itself."""

    def __init__(self, script, environment):
        server = Path(__file__).parent / "examples" / "image_classification" / "server.py"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.environment = environment
        self.process = subprocess.Popen([sys.executable, str(server), str(script)], env=environment, **pipes)
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)
