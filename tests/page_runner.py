"""Runs the snippets of pages: `page_runner.py FOLDER PAGE...`, with FOLDER as the repository's root.

Each page is run in a process of its own, which has the imports that cost seconds already. For each page it prints a
line of JSON with the page's name, its exit status and its output.
"""

import json
import os
import subprocess
import sys
import tempfile
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


def run_in_fork(page: str, log: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
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


if __name__ == "__main__":
    folder, *pages = sys.argv[1:]
    os.chdir(folder)
    import transformers.models.vit.modeling_vit
    import transformers.trainer  # noqa: F401

    for page in pages:
        with tempfile.TemporaryFile("w+") as log:
            _, status = os.waitpid(run_in_fork(page, log.fileno()), 0)
            log.seek(0)
            result = {"page": page, "status": os.waitstatus_to_exitcode(status), "output": log.read()}
        print(json.dumps(result), flush=True)
