"""Runs scripts in forks of itself, each a process of its own, with the imports that take seconds paid for once.

    fork_server.py MODULE...

imports the modules, and then reads one request of JSON a line. {"argv": [SCRIPT, ...], "cwd": ..., "env": {...},
"log": ...} starts `python SCRIPT ...` with its output in the file `log`; the answer is its pid. {"wait": pid} is
answered by its exit status. Nothing is computed here, so there are no threads that a fork would lose.
"""

import gc
import importlib
import json
import os
import runpy
import sys
import traceback
from typing import Any


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
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(1, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = argv
    sys.path[0] = os.path.dirname(os.path.abspath(argv[0]))
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


if __name__ == "__main__":
    for module in sys.argv[1:]:
        importlib.import_module(module)
    gc.freeze()  # what was imported stays in memory that the forks share
    answers = os.fdopen(os.dup(1), "w")
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                run(**request)
        print(answer, file=answers, flush=True)
