"""The one command for a GPU: its plan and its limits, what it keeps, and all of it in the dry form."""

import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import launch
import on_gpu
import on_gpu_steps
import pytest
import step_time
import torch
from on_gpu import Results, Run, Step
from paths import EXAMPLES

from hf_lpsgd import environment
from hf_lpsgd.optim.kernels import choice, cuda

SCRIPT = EXAMPLES / "benchmarks" / "on_gpu.py"
MACHINE = {"device": "cuda", "gpus": 1, "no_gpu": None, "machine": "a GPU", "commit": "c0ffee"}
MACHINE |= {"versions": {"torch": "2.13.0"}, "command": "python on_gpu.py", "date": "2026-01-01"}
# What the processes of the steps do; `results` is theirs.
LOOKS = f"results.write(name='machine', rows=[], **{MACHINE!r})"
WORKS = "results.add('first', lambda: {'rows': [{'task': 'a|b', 'ms': 1.5}], 'text': 'More of it.'})"
HANGS = "import time; results.add('second', lambda: time.sleep(60))"
IN_FRONT = """
import os, signal, sys
from pathlib import Path
from on_gpu import LeftOut, Results
results = Results(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
def fail(error):
    raise error
"""


class Fakes(Run):
    """A run whose steps do what they are given here."""

    does: dict[str, str]

    def command(self, step, folder):
        code = IN_FRONT + self.does[step.name]
        return [sys.executable, "-c", code, str(self.path), step.name, str(self.earlier)]


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs steps by what they do; whether all are done, and how each ended."""
    monkeypatch.setattr(on_gpu, "FEWEST_SECONDS", 1)
    monkeypatch.setattr(on_gpu, "RESERVE_SECONDS", 0)

    def call(does, minutes=1.0, **changes):
        steps = [Step("device", "The machine", 30, gpus=0)]
        names = [name for name in does if name != "device"]
        steps += [replace(Step(name, name.title(), 30), **changes.get(name, {})) for name in names]
        args = Namespace(
            output_dir=tmp_path, minutes=minutes, device=None, cifar10=None, texts=None, commit="", command=""
        )
        run = Fakes(args, tuple(steps))
        run.does = {"device": LOOKS, **does}
        is_done = run.run()
        said = dict(line.rsplit(" (", 1)[0].split(": ", 1) for line in capsys.readouterr().out.splitlines())
        return SimpleNamespace(is_done=is_done, said=said, page=(tmp_path / "results.md").read_text())

    return call


def test_the_page_has_what_each_step_found_and_in_one_line_why_one_found_nothing(call):
    does = {"works": WORKS, "fails": "print('x'); fail(ValueError('no such thing'))", "lacks": "", "pair": ""}
    does["parts"] = (
        "results.add('one', lambda: fail(OSError('disk')))\nresults.add('two', lambda: fail(LeftOut('5 GB')))"
        "\nresults.add('three', lambda: __import__('no_such_module'))"
    )
    ended = call(does, lacks={"needs": ("yaml", "no_such_package", "nor_such")}, pair={"gpus": 2})
    assert ended.said == {
        "device": "done",
        "works": "done",
        "fails": "failed: ValueError: no such thing",
        "lacks": "missing: no_such_package and nor_such; pip install no_such_package nor_such",
        "pair": "missing: 2 GPUs, and there is one",
        "parts": "failed: 1, first one: OSError: disk",
    }
    assert not ended.is_done
    for line in (
        "# What was run on a GPU",
        "`python on_gpu.py`, on 2026-01-01, at commit c0ffee; torch 2.13.0.",
        "| Lacks | missing: no_such_package and nor_such; pip install no_such_package nor_such | 0 |",
        "| task | ms |",
        "| a/b | 1.5 |",
        "More of it.",
        "- one: OSError: disk",
        "- two: 5 GB",
        "- three: missing: no_such_module",
    ):
        assert line in ended.page.splitlines()


def test_a_step_that_takes_too_long_is_ended_with_all_that_it_started_and_keeps_what_it_has(call, tmp_path):
    starts = "import subprocess; print('pid', subprocess.Popen(['sleep', '60']).pid, flush=True)"
    ended = call({"hangs": f"{WORKS}\n{starts}\n{HANGS}", "next": WORKS}, hangs={"limit": 2})
    assert ended.said["hangs"] == "cut off by its time limit, in second"
    assert ended.said["next"] == "done"
    assert "| a/b | 1.5 |" in ended.page
    pid = next(line for line in (tmp_path / "log.txt").read_text().splitlines() if line.startswith("pid")).split()[1]
    time.sleep(0.1)
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or " Z " in state.read_text()  # a zombie is one that nobody has waited for


def test_after_an_error_that_takes_the_gpu_a_new_process_goes_on_behind_it(call):
    add = "results.add({name!r}, lambda: {does})\n"
    does = "".join(
        add.format(name=name, does=does)
        for name, does in {
            "first": "{'rows': [{'of': os.getpid()}]}",
            "lost": "fail(RuntimeError('CUDA error: an illegal memory access'))",
            "second": "{'rows': [{'of': os.getpid()}]}",
            "killed": "os.kill(os.getpid(), signal.SIGSEGV)",
            "left": "os._exit(3)",
            "third": "{'rows': [{'of': os.getpid()}]}",
        }.items()
    )
    ended = call({"step": does})
    assert ended.said["step"] == "failed: 3, first lost: RuntimeError: CUDA error: an illegal memory access"
    assert "- killed: the process ended with SIGSEGV" in ended.page
    assert "- left: the process ended with exit status 3" in ended.page
    rows = [line for line in ended.page.splitlines() if line.startswith("| ") and line.count("|") == 2]
    assert rows[0] == "| of |"
    assert len({*rows[1:]}) == 3


def test_the_same_command_goes_on_with_a_run_that_was_cut_off(call, tmp_path):
    tries = f"{WORKS}\nresults.add('second', lambda: fail(LeftOut('no data')))"
    first = call({"one": WORKS, "two": tries, "three": HANGS}, three={"limit": 0.5})
    assert first.said["two"] == "done, but 1 left out"
    with open(tmp_path / "results.jsonl", "a") as file:
        file.write('{"step": "three", "na')
    not_again = "results.add('first', lambda: fail(OSError('made again')))\n"
    again = call(
        {
            "one": not_again,
            "two": f"{not_again}results.add('second', lambda: {{'text': 'found'}})",
            "three": "results.add('second', lambda: {'text': 'in time'})",
        }
    )
    assert again.is_done
    assert again.said == {"device": "done", "one": "done before", "two": "done", "three": "done"}
    assert "found" in again.page.splitlines()
    assert "in time" in again.page.splitlines()
    assert "no data" not in again.page


def test_nothing_is_begun_without_time_and_the_page_stays(call):
    call({"one": WORKS, "two": WORKS}, two={"needs": ("no_such_package",)})
    ended = call({"one": WORKS, "two": WORKS}, minutes=0)
    assert ended.said == dict.fromkeys(("device", "two"), "missing: time; the same command goes on") | {
        "one": "done before"
    }
    assert "| a/b | 1.5 |" in ended.page


def test_results_of_two_machines_do_not_come_into_one_folder(call, monkeypatch):
    call({"one": WORKS})
    monkeypatch.setitem(globals(), "LOOKS", LOOKS.replace("a GPU", "another"))
    with pytest.raises(SystemExit, match=r"has results of .*a GPU.*and this is .*another.*: name another"):
        call({"one": WORKS})


def test_where_the_machine_cannot_be_looked_at_nothing_else_is_tried(call):
    ended = call({"device": "fail(OSError('libcuda.so: cannot open'))", "one": WORKS})
    assert ended.said == {
        "device": "failed: OSError: libcuda.so: cannot open",
        "one": "missing: what the step device finds out",
    }
    assert ended.page.startswith("# What was run on an unknown machine\n")


def test_without_a_package_the_steps_that_need_it_say_so_and_the_others_can_run(monkeypatch, tmp_path):
    args = Namespace(output_dir=tmp_path, minutes=1, device=None)
    run = Run(args)
    run.machine = {**MACHINE, "gpus": 2}
    for package, steps in {"triton": {"self_check", "tests"}, "aenum": {"trainer", "fsdp2", "whole_steps"}}.items():
        monkeypatch.setattr(on_gpu, "find_spec", lambda name, package=package: None if name == package else name)
        said = {step.name: run.missing(step) for step in on_gpu.STEPS}
        assert {name for name, reason in said.items() if reason} == steps
        assert {said[name] for name in steps} == {f"missing: {package}; pip install {package}"}
    monkeypatch.undo()
    run.machine = {}
    assert run.missing(on_gpu.STEPS[1]) == "missing: what the step device finds out"


def without_a_gpu():
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}


def test_on_a_machine_without_the_gpu_that_was_requested_each_step_says_so(tmp_path):
    done = launch.python(tmp_path, SCRIPT, "--output_dir", "out", "--device", "cuda", env=without_a_gpu())
    assert done.returncode == 1
    *lines, last = done.stdout.splitlines()
    assert last.startswith("written: ")
    assert [line.split(" (")[0] for line in lines] == ["device: done"] + [
        f"{step.name}: missing: torch {torch.__version__} sees no GPU" for step in on_gpu.STEPS[1:]
    ]


def test_a_folder_that_is_not_there_is_told_before_anything_runs(tmp_path):
    done = launch.python(tmp_path, SCRIPT, "--output_dir", "out", "--cifar10", "none")
    assert done.returncode == 2
    assert "error: --cifar10 none: no such folder; name the one with the files" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_terminated_ends_its_process_and_writes_the_page(tmp_path):
    process = subprocess.Popen([sys.executable, SCRIPT, "--output_dir", tmp_path / "out"], env=without_a_gpu())
    log = tmp_path / "out" / "log.txt"
    while not (log.exists() and "== device ==" in log.read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert "| The machine | cut off |" in (tmp_path / "out" / "results.md").read_text()


def given(tmp_path, **more):
    facts = {"device": "cpu", "cifar10": None, "texts": None, "results": str(tmp_path / "results.jsonl"), "earlier": 0}
    return on_gpu_steps.Given(**facts | {"folder": str(tmp_path), "commit": "", "command": "", **more})


def lines(tmp_path):
    return {line["name"]: line for line in on_gpu.lines_of(tmp_path / "results.jsonl") if "began" not in line}


def test_shapes_that_take_more_memory_than_there_is_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(step_time, "contenders", step_time.contenders)
    monkeypatch.setattr(step_time, "free_bytes", lambda device: 10**9)
    on_gpu_steps.step_times(given(tmp_path), Results(tmp_path / "results.jsonl", "step_times"))
    found = lines(tmp_path)
    assert len(found) == 10
    assert {line["left_out"] for line in found.values()} == {"it takes about 1 GB, and 1 GB are free"}


def test_what_the_kernel_cannot_do_on_a_gpu_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(choice, "implementation_for", lambda device: "foreach")
    monkeypatch.setattr(choice, "why_not_fused", lambda device: "no C compiler")
    monkeypatch.setattr(cuda, "supports", lambda device, *dtypes: False)
    monkeypatch.setattr(environment, "describe_environment", lambda: "versions")
    on_gpu_steps.self_check(given(tmp_path, device="cuda"), Results(tmp_path / "results.jsonl", "self_check"))
    found = lines(tmp_path)
    assert found.pop("default")["failed"] == "RuntimeError: the default is foreach, since no C compiler"
    assert found.pop("environment")["text"] == "```\nversions\n```"
    assert {line["left_out"] for line in found.values()} == {"the kernel does not support them on this GPU"}


def test_of_a_script_that_fails_its_own_error_is_told(tmp_path, monkeypatch):
    (tmp_path / "log.txt").write_text("Traceback\nValueError: this GPU knows no bfloat16\n")
    monkeypatch.setattr(on_gpu_steps.subprocess, "run", lambda command: Namespace(returncode=1))
    on_gpu_steps.trainer(given(tmp_path), Results(tmp_path / "results.jsonl", "trainer"))
    said = "RuntimeError: exit status 1: ValueError: this GPU knows no bfloat16"
    assert [line["failed"] for line in lines(tmp_path).values()] == [said]


def test_cifar10_needs_a_package_too(tmp_path, monkeypatch):
    monkeypatch.setattr(on_gpu_steps, "find_spec", lambda name: None)
    monkeypatch.setitem(on_gpu_steps.STUDY_TASKS, "cpu", {"cifar_resnet": "cifar10"})
    on_gpu_steps.study(given(tmp_path, cifar10="/data"), Results(tmp_path / "results.jsonl", "study"))
    assert lines(tmp_path)["cifar_resnet"]["left_out"] == "missing: datasets; pip install datasets"


def test_an_optimizer_that_cannot_step_does_not_take_the_others_with_it(tmp_path, monkeypatch):
    def contenders(device, dtype):
        fused, adamw = ((cls, {"fused": True}) for cls in (torch.optim.SGD, torch.optim.AdamW))
        kinds = {"SGD, momentum, fused": fused, "AdamW, fused": adamw, "AdamW, foreach": (torch.optim.AdamW, {})}
        kinds |= {"LPSGDM, default": (step_time.LPSGDM, {}), "Lion": (lambda params: 1 / 0, {})}
        return [
            step_time.Contender(name, lambda params, cls=cls, options=options: cls(params, **options))
            for name, (cls, options) in kinds.items()
        ]

    monkeypatch.setattr(step_time, "contenders", contenders)
    monkeypatch.setattr("parameter_shapes.SHAPES", {"small": lambda: [(3, 4)]})
    on_gpu_steps.step_times(given(tmp_path), Results(tmp_path / "results.jsonl", "step_times"))
    line = lines(tmp_path)["small, bfloat16"]
    assert [row["optimizer"] for row in line["rows"]] == [
        "SGD, momentum, fused",
        "AdamW, fused",
        "LPSGDM, default",
        "copy",
    ]
    assert "- Lion: ZeroDivisionError: division by zero" in line["text"]
    assert "Lion" not in line["data"]["contenders"]


def test_the_result_of_each_test_is_written_at_once(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "def test_skipped(): pytest.skip('no GPU')\n"
    )
    (tmp_path / "test_broken.py").write_text("import no_such_module")
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\nmarkers = ['exhaustive: left out']\n")
    code = (
        "import json, sys, on_gpu_steps, on_gpu; from pathlib import Path\n"
        "given, on_gpu_steps.ROOT = on_gpu_steps.Given(**json.loads(sys.argv[1])), Path.cwd()\n"
        "on_gpu_steps.TESTS['cpu'] = ['--continue-on-collection-errors', 'test_it.py', 'test_broken.py']\n"
        "on_gpu_steps.tests(given, on_gpu.Results(Path(given.results), 'tests'))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{SCRIPT.parent}{os.pathsep}{os.environ['PYTHONPATH']}"}
    launch.python(tmp_path, "-c", code, json.dumps(vars(given(tmp_path))), env=environment)
    found = lines(tmp_path)
    assert found["test_it.py::test_good"]["rows"][0]["result"] == "passed"
    assert found["test_it.py::test_bad"]["failed"].startswith("assert 1 == 2")
    assert found["test_it.py::test_skipped"]["left_out"] == "Skipped: no GPU"
    assert "No module named 'no_such_module'" in found["test_broken.py"]["failed"]


@pytest.mark.parametrize(
    ("output", "error"),
    [
        ("Traceback\n  File\nValueError: no\nmore", "ValueError: no"),
        ("run.py: error: --x: no\n", "run.py: error: --x: no"),
        ("10%\r20%\n\n", "20%"),
        ("", ""),
        (f"OSError: {on_gpu.ROOT}/a " + 500 * "x", "OSError: a " + 239 * "x" + " ... " + 140 * "x"),
    ],
)
def test_of_a_process_the_line_is_told_that_reads_as_an_error(output, error):
    assert on_gpu.error_in(output) == error


@pytest.mark.exhaustive
def test_without_a_gpu_every_step_runs_in_a_dry_form(tmp_path):
    nothing_compiles = {"CC": "false", "CXX": "false"}
    done = launch.python(
        tmp_path,
        SCRIPT,
        "--output_dir",
        "out",
        "--minutes",
        "20",
        env=without_a_gpu() | nothing_compiles,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ended = dict(line.split(" (")[0].split(": ", 1) for line in done.stdout.splitlines()[:-1])
    left_out = {"tests": ended["tests"], "study": "done, but 1 left out"}
    assert ended == {step.name: "done" for step in on_gpu.STEPS} | left_out
    assert ended["tests"].startswith("done, but")
    page = (tmp_path / "out" / "results.md").read_text()
    assert page.startswith("# A dry run on CPU")
    assert str(tmp_path) not in page
    for step in on_gpu.STEPS[1:]:
        assert f"| {step.title} | done" in page
        assert f"## {step.title}" in page
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"results.md", "results.jsonl", "log.txt", "study"}
