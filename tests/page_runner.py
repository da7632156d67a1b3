"""Runs the snippets of pages: `page_runner.py FOLDER PAGE...`.

FOLDER looks like the repository's root, and each page gets one like it. Each page is run in a process of its own, with
the imports that take seconds done before; two run at a time. For each page a line of JSON tells its name, its exit
status and its output.
"""

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

from snippets import commands_of, first_line_not_printed, snippets_of


def run_page(page: str) -> None:
    namespace = {"__name__": "__main__"}
    for snippet in snippets_of(Path(page).read_text()):
        if snippet.not_run is not None:
            continue
        if snippet.language == "python":
            # Errors name the page and its line.
            exec(compile("\n" * snippet.line + snippet.text, page, "exec"), namespace)
            continue
        for command, shown in commands_of(snippet.text):
            print(f"$ {command}", flush=True)
            run = subprocess.run(["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            print(run.stdout, flush=True)
            if run.returncode:
                sys.exit(f"{page}, line {snippet.line}: the exit status is {run.returncode}")
            missing = first_line_not_printed(shown, run.stdout)
            if missing is not None:
                sys.exit(f"{page}, line {snippet.line}: the command does not print in this place: {missing}")


def start(page: str, root: Path, folder: Path) -> int:
    """Run a page in a fork, in `folder`, with its output in a file beside it; the process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        folder.mkdir()
        for entry in root.iterdir():
            (folder / entry.name).symlink_to(entry)
        os.chdir(folder)
        run_page(page)
        status = 0
    except SystemExit as error:
        print(error, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run_pages(root: Path, pages: list[str]) -> None:
    # The longest ones first.
    waiting = sorted(pages, key=lambda page: (root / page).stat().st_size)
    running: dict[int, tuple[str, Path]] = {}
    while waiting or running:
        while waiting and len(running) < 2:
            page = waiting.pop()
            folder = root.with_name(f"page_{len(waiting)}")
            running[start(page, root, folder)] = page, folder
        pid, status = os.wait()
        page, folder = running.pop(pid)
        output = folder.with_suffix(".log").read_text()
        print(json.dumps({"page": page, "status": os.waitstatus_to_exitcode(status), "output": output}), flush=True)


if __name__ == "__main__":
    import transformers.models.vit.modeling_vit
    import transformers.trainer  # noqa: F401

    run_pages(Path(sys.argv[1]), sys.argv[2:])
