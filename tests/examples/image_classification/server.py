"""Runs a script again and again, each time in a process of its own, with the imports paid for once.

Reads one JSON request a line. {"start": [argv...], "log": path, "env": {...}} forks a process that runs the script as
`python SCRIPT argv` would ("script": path runs another, "cwd": path elsewhere) and answers its pid; {"wait": pid}
answers its exit status.
The server computes nothing itself, so it has no threads when it forks.
"""

import json
import os
import runpy
import sys
import traceback

SCRIPT = sys.argv[1]


def preload() -> None:
    sys.path.insert(0, os.path.dirname(SCRIPT))
    import images.inputs  # noqa: F401
    import matplotlib.backends.backend_agg  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import transformers.models.vit.modeling_vit
    import transformers.trainer  # noqa: F401

    import hf_lpsgd  # noqa: F401


def child(request: dict) -> None:
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.update(request["env"])
    os.chdir(request.get("cwd", "."))
    script = request.get("script", SCRIPT)
    sys.argv = [script, *request["start"]]
    status = 1
    try:
        runpy.run_path(script, run_name="__main__")
        status = 0
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            status = error.code or 0
        else:
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    preload()
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            child(request)
        print(pid, flush=True)
