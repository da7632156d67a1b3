"""All that a GPU is needed for, in one command and a given time: tests, step times, training, memory.

    python examples/benchmarks/on_gpu.py --minutes 12 --output_dir DIR

It needs this repository, and torch with CUDA, triton, transformers and accelerate. It needs no installation and no
network. Some steps need aenum, pytest or data; where one is missing, a line says so and the others run. The
steps run in the order of their worth, each in a process with a time limit. Each result is written at once: as a line
of results.jsonl, and into results.md, a page to be committed as it is. What the processes print is in log.txt. The
same command goes on with a run that was cut off. Without a GPU, each step runs in a small dry form.
"""

import argparse
import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from output_folder import make_folder

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# What is left of the time when the last process is ended: for that, and for the page.
RESERVE_SECONDS = 8
# Nothing is begun that has less: Python and torch alone take some of it.
FEWEST_SECONDS = 20
SECONDS_TO_END = 5
# With this exit status a step asks for a new process, to go on in. After such an error a process cannot use the GPU.
RESTART = 75
GPU_IS_LOST = re.compile(r"CUDA error|AcceleratorError|device-side assert|illegal memory|CUBLAS|out of memory", re.I)
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

Line = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """A step of the run.

    Attributes:
        name: how results and `--steps` call it.
        title: its heading on the page.
        limit: the most seconds that it may take.
        needs: packages without which it cannot run.
        gpus: how many it needs.
    """

    name: str
    title: str
    limit: float
    needs: tuple[str, ...] = ()
    gpus: int = 1


_TRAINER = ("transformers", "accelerate", "aenum")
STEPS = (
    Step("device", "The machine", 240, ("torch",), gpus=0),
    Step("self_check", "The fused kernel beside torch's operations", 120, ("triton",)),
    Step("tests", "The tests that need a GPU", 150, ("pytest", "triton", "transformers")),
    Step("step_times", "Times of a step", 270, ("transformers", "psutil")),
    Step("trainer", "The Trainer, and a run that goes on from its checkpoint", 200, _TRAINER),
    Step("memory", "Peak memory of a whole training step", 120, ("transformers",)),
    Step("study", "Short trainings beside AdamW", 180, ("yaml", "transformers")),
    Step("fsdp2", "FSDP2 through the Trainer", 120, _TRAINER, gpus=2),
    Step("whole_steps", "A whole step of the Trainer", 90, _TRAINER),
)


class LeftOut(Exception):
    """Says why there is no result: something is missing, and nothing went wrong."""


class Results:
    """The results of one step, each written at once, as a line of JSON.

    What an earlier process of this call tried is not tried again. Of earlier calls there are the first `earlier` lines
    of the file, and only what failed or was left out is.
    """

    def __init__(self, path: Path, step: str, earlier: int = 0) -> None:
        self.path, self.step = path, step
        self.had = {
            line["name"]
            for number, line in enumerate(lines_of(path))
            if line["step"] == step and "name" in line and "began" not in line
            if number >= earlier or not {"failed", "left_out"} & line.keys()
        }

    def write(self, **line: Any) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, **line}) + "\n")

    def add(self, name: str, measure: Callable[[], Line]) -> None:
        """Write what `measure()` returns: `rows` of a table, `text` of the page, and more; or why there is nothing."""
        if name in self.had:
            return
        self.write(name=name, began=True)
        try:
            line = measure()
        except LeftOut as reason:
            line = {"left_out": str(reason)}
        except ModuleNotFoundError as error:
            line = {"left_out": f"missing: {error.name}"}
        except Exception as error:
            traceback.print_exc()
            line = {"failed": one_line(f"{type(error).__name__}: {error}")}
        self.finish(name, line)

    def finish(self, name: str, line: Line) -> None:
        """Write a result; ask for a new process if this one can use the GPU no more."""
        self.write(name=name, **line)
        if GPU_IS_LOST.search(line.get("failed", "")):
            sys.stdout.flush()
            os._exit(RESTART)  # not by way of destructors, which would use the GPU


def one_line(text: str) -> str:
    """Text in one line, without the folders of this machine, and of a long one its beginning and its end."""
    line = " ".join(text.split()).replace(f"{ROOT}/", "").replace(f"{Path.home()}/", "~/")
    return line if len(line) <= 400 else f"{line[:250]} ... {line[-140:]}"


def lines_of(path: Path, step: str | None = None) -> list[Line]:
    """The lines of a results file, all or those of a step; a line that was cut off is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return [line for line in lines if step in (None, line["step"])]


class Run:
    """The steps of one call, within its time."""

    def __init__(self, args: argparse.Namespace, steps: tuple[Step, ...] = STEPS) -> None:
        self.args, self.steps = args, steps
        self.end = time.monotonic() + 60 * args.minutes - RESERVE_SECONDS
        self.path: Path = args.output_dir / "results.jsonl"
        self.log: Path = args.output_dir / "log.txt"
        if self.path.exists() and not self.path.read_text(encoding="utf-8").endswith("\n"):
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("\n")  # after a line that was cut off
        self.earlier = len(lines_of(self.path))
        self.machine: Line = {}

    def run(self) -> bool:
        """Run the steps that are not done yet; True if all of them are done."""
        for step in self.steps:
            if step.gpus and outcome_of(lines_of(self.path, step.name)) == "done":
                print(f"{step.name}: done before", flush=True)
                continue
            begun, outcome = time.monotonic(), "cut off"
            try:
                outcome = self.missing(step) or self.run_step(step)
            finally:
                seconds = round(time.monotonic() - begun, 1)
                Results(self.path, step.name).write(outcome=outcome, seconds=seconds)
                self.write_page()
                print(f"{step.name}: {outcome} ({seconds:.0f} s)", flush=True)
            if not step.gpus:
                self.look_at_machine()
        return all((outcome_of(lines_of(self.path, step.name)) or "").startswith("done") for step in self.steps)

    def look_at_machine(self) -> None:
        machines = [line for line in lines_of(self.path, "device") if "gpus" in line]
        if not machines:
            return
        self.machine = machines[-1]
        first, now = ({key: line[key] for key in ("machine", "commit")} for line in (machines[0], machines[-1]))
        if first != now:
            sys.exit(f"--output_dir {self.args.output_dir} has results of {first}, and this is {now}: name another")

    def missing(self, step: Step) -> str | None:
        """What a step lacks, in one line; None if it can run."""
        packages = [name for name in step.needs if find_spec(name) is None]
        if packages:
            return f"missing: {' and '.join(packages)}; pip install {' '.join(packages).replace('yaml', 'pyyaml')}"
        if step.gpus and not self.machine:
            return "missing: what the step device finds out"
        if step.gpus and self.machine["device"] == "cuda" and self.machine["gpus"] < step.gpus:
            return f"missing: {self.machine['no_gpu'] or f'{step.gpus} GPUs, and there is one'}"
        if self.end - time.monotonic() < FEWEST_SECONDS:
            return "missing: time; the same command goes on"
        return None

    def run_step(self, step: Step) -> str:
        """Run a step in one process, or in more after errors that end one; how it went, in one line."""
        dry = self.machine.get("device") == "cpu"  # where it takes as long as the machine needs
        limit = self.end if dry else time.monotonic() + step.limit
        while True:
            status, said = self.run_process(step, min(limit, self.end) - time.monotonic())
            lines = lines_of(self.path, step.name)
            unfinished = begun_last(lines)
            if status is None:
                return f"cut off by its time limit{f', in {unfinished}' if unfinished else ''}"
            if status not in (0, 1, RESTART) and unfinished:  # as after a segmentation fault: without that one
                reason = signal.Signals(-status).name if status < 0 else f"exit status {status}: {said}"
                Results(self.path, step.name).finish(unfinished, {"failed": f"the process ended with {reason}"})
            elif status not in (0, RESTART):
                return f"failed: {said}"
            if status == 0:
                lines = without_former(lines)
                failed = [line for line in lines if "failed" in line]
                left_out = sum("left_out" in line for line in lines)
                if failed:
                    return f"failed: {len(failed)}, first {failed[0]['name']}: {failed[0]['failed']}"
                return "done" if not left_out else f"done, but {left_out} left out"

    def run_process(self, step: Step, seconds: float) -> tuple[int | None, str]:
        """The exit status of a process, None if it was ended after so many seconds, and the error that it printed."""
        given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        folders = [str(ROOT), str(HERE), *(os.path.abspath(folder) for folder in given if folder)]
        environment = {**os.environ, **OFFLINE, "PYTHONPATH": os.pathsep.join(folders), "PYTHONUNBUFFERED": "1"}
        if self.machine.get("device", self.args.device) == "cpu":
            environment.update(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
        elif step.gpus:  # with more than it needs, the Trainer trains with all of them
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible[: step.gpus])
        with open(self.log, "ab") as log, tempfile.TemporaryDirectory(prefix="on_gpu_") as folder:
            log.write(f"\n== {step.name} ==\n".encode())
            log.flush()
            begun = log.tell()
            # What libraries keep, they keep there; compiled kernels stay for the next process.
            environment.update(HF_HOME=folder, MPLCONFIGDIR=folder)
            process = subprocess.Popen(
                self.command(step, folder),
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            status = None
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    status = process.wait(max(seconds, 0))
            finally:
                end(process)
        with open(self.log, "rb") as log:
            log.seek(begun)
            return status, error_in(log.read().decode(errors="replace"))

    def command(self, step: Step, folder: str) -> list[str]:
        given = {"device": self.machine.get("device", self.args.device), "cifar10": self.args.cifar10}
        given["texts"] = self.args.texts
        given.update(results=str(self.path), earlier=self.earlier, folder=folder)
        given.update(commit=self.args.commit, command=self.args.command)
        return [sys.executable, str(HERE / "on_gpu_steps.py"), step.name, json.dumps(given)]

    def write_page(self) -> None:
        (self.args.output_dir / "results.md").write_text("\n".join(page(lines_of(self.path), self.steps)) + "\n")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it has started, all of one process group."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS_TO_END)


def error_in(output: str) -> str:
    """The last line of a process's output that reads as an error, or else the last."""
    lines = [one_line(line.split("\r")[-1]) for line in output.splitlines()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b|.*\berror:", line)]
    return ([""] + [line for line in lines if line] + errors)[-1]


def outcome_of(lines: list[Line]) -> str | None:
    return next((line["outcome"] for line in reversed(lines) if "outcome" in line), None)


def begun_last(lines: list[Line]) -> str | None:
    """The name of the result that was begun last, if it was not finished."""
    named = [line for line in lines if "name" in line]
    return named[-1]["name"] if named and "began" in named[-1] else None


def page(lines: list[Line], steps: tuple[Step, ...] = STEPS) -> Iterator[str]:
    """The results as a page in Markdown."""
    lines = without_former(lines)
    machine = next((line for line in lines if "gpus" in line), {})
    on = f"on {machine.get('machine', 'an unknown machine')}"
    dry = machine.get("device") == "cpu"
    yield f"# {'A dry run' if dry else 'What was run'} {on}"
    yield ""
    if dry:
        yield "Each step ran in a small form, without a GPU. No number here tells anything about one."
        yield ""
    if machine:
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        yield f"`{machine['command']}`, on {machine['date']}, at commit {machine['commit'] or 'unknown'}; {versions}."
        yield ""
    yield from table(
        {"step": step.title, "result": outcome, "seconds": f"{seconds:.0f}"}
        for step in steps
        for outcome, seconds in [(line["outcome"], line["seconds"]) for line in of(lines, step, "outcome")]
    )
    for step in steps:
        rows = [row for line in of(lines, step, "rows") for row in line["rows"]]
        texts = [line["text"] for line in of(lines, step, "text")]
        nothing = [(line["name"], line[kind]) for kind in ("failed", "left_out") for line in of(lines, step, kind)]
        if rows or texts or nothing:
            yield f"## {step.title}"
            yield ""
            yield from table(iter(rows))
            for text in texts:
                yield text.strip()
                yield ""
            for name, reason in nothing:
                yield f"- {name}: {reason}"
            yield from [""] if nothing else []


def without_former(lines: list[Line]) -> list[Line]:
    """The lines, without those about a result that was tried again later."""
    last = {(line["step"], line.get("name")): line for line in lines}
    return [line for line in lines if line is last[line["step"], line.get("name")]]


def of(lines: list[Line], step: Step, kind: str) -> list[Line]:
    return [line for line in lines if line["step"] == step.name and kind in line]


def table(rows: Iterator[Line]) -> Iterator[str]:
    """Rows as a table in Markdown, with a column for each of their keys."""
    body = list(rows)
    columns = list(dict.fromkeys(key for row in body for key in row))
    if body:
        yield f"| {' | '.join(columns)} |"
        yield "|---" * len(columns) + "|"
        for row in body:
            yield f"| {' | '.join(str(row.get(key, '')).replace('|', '/') for key in columns)} |"
        yield ""


def without_folders(arguments: list[str]) -> str:
    """A command line without the folders of this machine, which tell nobody else anything."""
    return shlex.join(Path(argument).name if Path(argument).is_absolute() else argument for argument in arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the results")
    parser.add_argument("--minutes", type=float, default=12, help="for all together; default: %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if torch sees a GPU, else cpu")
    parser.add_argument("--cifar10", help="for the step study: a folder with the parquet files of CIFAR-10")
    parser.add_argument("--texts", help="the same: a folder with tinyshakespeare.txt; see run_study.py")
    names = [step.name for step in STEPS[1:]]
    parser.add_argument("--steps", nargs="+", choices=names, default=names, help="these steps only")
    parser.add_argument("--commit", default="", help="of this repository, where git cannot tell it")
    args = parser.parse_args()
    args.command = without_folders(["python", "examples/benchmarks/on_gpu.py", *sys.argv[1:]])
    for data in ("cifar10", "texts"):
        folder = getattr(args, data)
        if folder and not Path(folder).is_dir():
            parser.error(f"--{data} {folder}: no such folder; name the one with the files, see --help")
        setattr(args, data, folder and os.path.abspath(folder))
    make_folder(parser, "--output_dir", args.output_dir)
    args.output_dir = args.output_dir.resolve()
    run = Run(args, tuple(step for step in STEPS if step.name in ("device", *args.steps)))

    def stop(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)  # so that the process that runs just now is ended too
    try:
        is_done = run.run()
    finally:
        print(f"written: {args.output_dir}/results.md, results.jsonl and log.txt", flush=True)
    sys.exit(0 if is_done else 1)


if __name__ == "__main__":
    main()
