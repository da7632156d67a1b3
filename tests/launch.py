"""Starts processes for tests, and leaves none behind."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from typing import NamedTuple

from paths import FORK_SERVER


class Finished(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def obey_interrupts():
    """What a shell starts in the background ignores SIGINT, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def python(cwd, *arguments, env=None, timeout=120):
    """Run `python ARGUMENTS` in a folder to its end, with stdout and stderr apart."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        preexec_fn=obey_interrupts,
        timeout=timeout,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def launch(*arguments, cwd=None, env=None, timeout=240):
    """Run `python -m ARGUMENTS`, a launcher of processes, to its end; exit status and output, all in one."""
    launcher = subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
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
    return launcher.returncode, output


@contextlib.contextmanager
def port_kept_free():
    """A port for `accelerate launch --main_process_port`, where accelerate 1.3 takes 0 for the port itself.

    Nobody else is given the port while this socket is bound to it, and whoever allows addresses to be used again, as
    torch does, can listen there.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield str(holder.getsockname()[1])


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


class Fork:
    """A script that runs, or has run, in a fork of the server.

    Attributes:
        pid: of its process.
        status: its exit status once it has been waited for, negative where a signal ended it.
    """

    def __init__(self, server, pid, log):
        self.server, self.pid, self.log = server, pid, log
        self.status = None

    def wait(self, timeout=240):
        """Wait for its end, which comes by SIGKILL after `timeout` seconds."""
        self.server.send({"wait": self.pid})
        if not select.select([self.server.connection], [], [], timeout)[0]:
            os.kill(self.pid, signal.SIGKILL)
        self.status = int(self.server.answer())
        return self

    @property
    def output(self):
        return self.log.read_text()


@contextlib.contextmanager
def fork_server(environment):
    """Starts fork_server.py, and gives its address."""
    with tempfile.TemporaryDirectory(prefix="forks_", dir="/tmp") as folder:  # elsewhere an address may be too long
        address = f"{folder}/socket"
        # The server alone keeps it, so that nobody waits for the answer of one that has ended.
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen()
            command = [sys.executable, str(FORK_SERVER), str(listener.fileno())]
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[listener.fileno()],
            )
        try:
            yield address
        finally:
            process.stdin.close()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Forks:
    """Scripts in forks of the server at an address, with this environment, after these modules are imported too.

    The server is not asked before the first script is started.
    """

    def __init__(self, folder, address, environment, modules=()):
        self.folder, self.address, self.environment, self.modules = folder, address, environment, modules
        self.connection, self.count = None, 0

    def send(self, request):
        if self.connection is None:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(self.address)
            self.connection, self.stream = connection, connection.makefile("rw")
            print(json.dumps({"env": self.environment, "modules": self.modules}), file=self.stream, flush=True)
        print(json.dumps(request), file=self.stream, flush=True)

    def answer(self):
        try:
            answer = self.stream.readline().strip()
        except ConnectionResetError:
            answer = ""
        assert answer, "fork_server.py has ended"
        return answer

    def start(self, script, *arguments, cwd=None, env=None):
        """Start `python SCRIPT ARGUMENTS` with `env` besides the server's environment."""
        self.count += 1
        log = self.folder / f"{self.count}.log"
        argv = [str(script), *map(str, arguments)]
        self.send({"argv": argv, "cwd": str(cwd or self.folder), "env": env or {}, "log": str(log)})
        pid = int(self.answer())
        return Fork(self, pid, log)

    def run(self, script, *arguments, timeout=240, **options):
        """Run a script to its end; options are those of `start`."""
        return self.start(script, *arguments, **options).wait(timeout)

    def run_ranks(self, count, script, *arguments, env=None, timeout=240, **options):
        """Run a script in `count` processes that are told of each other as torchrun tells them, to the end of all."""
        from torch.distributed import TCPStore

        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        group = {
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # the first rank joins this store, and makes none
            "TORCHELASTIC_RESTART_COUNT": "0",
        }
        ranks = []
        for rank in map(str, range(count)):
            place = {"RANK": rank, "LOCAL_RANK": rank}
            ranks.append(self.start(script, *arguments, env={**group, **place, **(env or {})}, **options))
        return [rank.wait(timeout) for rank in ranks]

    def close(self):
        if self.connection is not None:
            self.connection.shutdown(socket.SHUT_RDWR)  # then what still runs is ended
            self.connection.close()
