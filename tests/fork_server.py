"""Runs scripts in forks of itself, each a process of its own, with the imports that take seconds paid for once.

    fork_server.py NUMBER

listens at the socket that its parent left it under this number, until its stdin is closed. When somebody first
connects, it imports what most scripts need. Each who connects has a fork to himself, which reads one request of JSON a
line. The first, {"env": {...}, "modules": [...]}, sets its environment and imports more. {"argv": [SCRIPT, ...],
"cwd": ..., "env": {...}, "log": ...} starts `python SCRIPT ...` with its output in the file `log`; the answer is its
pid. {"wait": pid} is answered by its exit status. What runs when the connection ends is ended. No thread of Python is
started here, and so a fork loses none.
"""

import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import traceback
import warnings
from typing import Any

# What most scripts import, and what takes long.
PRELOADED = (
    "transformers.trainer",
    "transformers.models.vit.modeling_vit",
    "datasets",
    "evaluate",
    "hf_lpsgd",
)


def preload() -> None:
    """Import what takes long, and do what each script would do first."""
    for module in PRELOADED:
        importlib.import_module(module)
    import sklearn.datasets
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    Image.init()
    FigureCanvasAgg(Figure()).draw()
    sklearn.datasets.load_digits = functools.cache(sklearn.datasets.load_digits)
    sklearn.datasets.load_digits()
    gc.freeze()  # what was imported stays in memory that the forks share


def keep_process_group() -> None:
    """Never let go of the default process group.

    Where a DDP model holds the last reference, torch joins gloo's thread without giving up the GIL. If that thread has
    a tensor to free at this moment, which needs the GIL, neither goes on.
    """
    import torch

    begin: Any = torch.distributed.init_process_group
    kept = []

    def init_process_group(*args: Any, **kwargs: Any) -> None:
        begin(*args, **kwargs)
        kept.append(torch.distributed.group.WORLD)

    torch.distributed.init_process_group = init_process_group


def run(argv: list[str], cwd: str, env: dict[str, str], log: str) -> None:
    """Be the process that runs a script.

    It leaves without Python's shutdown: threads of gloo live on in a process that has had a DDP model, and torch now
    and then aborts one that has done all its work.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(1, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = argv
    sys.path[0] = os.path.dirname(os.path.abspath(argv[0]))
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # or all forks would draw the same numbers
    if "RANK" in env:
        keep_process_group()
    status: object = 1
    try:
        runpy.run_path(argv[0], run_name="__main__")
        status = 0
    except SystemExit as error:
        status = error.code
        if not isinstance(status, int | None):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)  # type: ignore[arg-type]


def serve(connection: socket.socket) -> None:
    """Answer the requests of one who connected, and end what still runs when he is gone."""
    requests, answers = connection.makefile("r"), connection.makefile("w")
    first = json.loads(requests.readline())
    os.environ.clear()
    os.environ.update(first["env"])
    for module in first["modules"]:
        importlib.import_module(module)
    gc.freeze()
    running = set()
    try:
        for line in requests:
            request = json.loads(line)
            if "wait" in request:
                answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
                running.discard(request["wait"])
            else:
                answer = os.fork()
                if answer == 0:
                    for file in (requests, answers, connection):
                        file.close()
                    run(**request)
                running.add(answer)
            print(answer, file=answers, flush=True)
    finally:
        for pid in running:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def main(number: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends when its stdin is closed
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that serve
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    listener = socket.socket(fileno=number)
    files = [listener, sys.stdin]
    if listener in select.select(files, [], [])[0]:
        preload()
    while listener in select.select(files, [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            with contextlib.suppress(ConnectionError):
                serve(connection)
            os._exit(0)
        connection.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
