"""Runs the snippets of a page in order: `page_runner.py PAGE`, in a folder that looks like the repository's root.

It is itself run by fork_server.py, and forks off the scripts that the page starts.
"""

import os
import subprocess
import sys
from pathlib import Path

from fork_server import run
from snippets import commands_of, first_line_not_printed, snippets_of, words_of


def run_command(command: str) -> tuple[int, str]:
    """Exit status and output of a command."""
    interpreter, *words = words_of(command)
    if interpreter != "python" or not words[0].endswith(".py"):
        done = subprocess.run(["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.returncode, done.stdout
    pid = os.fork()
    if pid == 0:
        run(words, cwd=".", env={}, log="command.log")
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), Path("command.log").read_text()


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
            status, output = run_command(command)
            print(output, flush=True)
            if status:
                sys.exit(f"{page}, line {snippet.line}: the exit status is {status}")
            missing = first_line_not_printed(shown, output)
            if missing is not None:
                sys.exit(f"{page}, line {snippet.line}: the command does not print in this place: {missing}")


if __name__ == "__main__":
    run_page(sys.argv[1])
