"""The runner: every Python under the command knows the optimizers, and is otherwise as it was."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launch import obey_interrupts, python, write
from under_runner import CHILDREN, ENVIRONMENT, PACKAGE, REACHED, run_both, under_the_runner


def test_the_process_and_its_signals_are_those_of_the_command(tmp_path):
    write(tmp_path / "script.py", "import os, sys; print(os.getpid()); sys.exit(sys.stdin.read() != 'in')")
    command = [sys.executable, "-m", "hf_lpsgd", "script.py"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, **pipes) as process:
        assert process.communicate("in", timeout=60) == (f"{process.pid}\n", None)
    assert process.returncode == 0
    if Path("/proc/self/status").exists():
        status = ["-c", "grep SigIgn /proc/self/status"]
        plain = subprocess.run(["sh", *status], capture_output=True, text=True, preexec_fn=obey_interrupts)
        assert under_the_runner(tmp_path, "sh", *status).stdout == plain.stdout


@pytest.mark.parametrize("before", ["", ":"])
@pytest.mark.parametrize("after", ["", ":", "::folder", f":{CHILDREN}"])
def test_python_path_keeps_its_entries_and_their_order(tmp_path, before, after):
    write(tmp_path / "script.py", "import sys; print(sys.path)")
    run_both(tmp_path, "script.py", PYTHONPATH=f"{before}{PACKAGE.parent}{after}".replace(":", os.pathsep))


def test_a_runner_in_a_runner_changes_nothing_more(tmp_path):
    write(tmp_path / "script.py", f"import os, sys; print(os.environ['PYTHONPATH'], {REACHED})")
    nested = under_the_runner(tmp_path, "-m", "hf_lpsgd", sys.executable, "-m", "hf_lpsgd", "script.py")
    assert nested == (0, f"{CHILDREN}{os.pathsep}{PACKAGE.parent} True\n", "")


CHILDREN_OF = f"""
import multiprocessing, os, subprocess, sys

def reached(_):
    return {REACHED}

if __name__ == "__main__":
    show = "import sys; print({REACHED})"
    print(subprocess.check_output([sys.executable, "-c", show], text=True).strip())
    print(subprocess.check_output(["sh", "-c", f'{{sys.executable}} -c "{{show}}"'], text=True).strip())
    for method in ("spawn", "forkserver", "fork"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            print(*pool.map(reached, [0]))
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-c", show])
"""


def test_children_of_every_kind_are_reached(tmp_path):
    write(tmp_path / "script.py", CHILDREN_OF)
    assert under_the_runner(tmp_path, "script.py") == (0, "True\n" * 6, "")
    assert python(tmp_path, "script.py", env=ENVIRONMENT) == (0, "False\n" * 6, "")


@pytest.mark.parametrize(
    "launch",
    [
        "-m hf_lpsgd torchrun --standalone --nproc_per_node 2 script.py --rank",
        "-m hf_lpsgd accelerate launch --cpu --num_processes 1 script.py --rank",
        pytest.param(
            "-m accelerate.commands.launch --cpu --num_processes 1 -m hf_lpsgd script.py --rank",
            marks=pytest.mark.exhaustive,  # test_runner_training.py has torchrun in this order
        ),
    ],
)
def test_launchers_reach_their_processes_whichever_comes_first(tmp_path, launch):
    # By one call each, which the other process cannot divide.
    one = f"('program %s %s\\n' % (sys.argv[1:], {REACHED})).encode()"
    write(tmp_path / "script.py", f"import os, sys; os.write(1, {one})")
    result = python(tmp_path, *shlex.split(launch), env={**ENVIRONMENT, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    assert result.stdout == "program ['--rank'] True\n" * (2 if "torchrun" in launch else 1)


def test_the_sitecustomize_that_is_hidden_is_run_and_keeps_its_place(tmp_path):
    write(tmp_path / "own" / "sitecustomize.py", "import sys; print('own', __name__, __file__)")
    write(tmp_path / "script.py", "import sys; print(sys.modules['sitecustomize'].__file__, sys.path)")
    result = run_both(tmp_path, "script.py", PYTHONPATH=f"{PACKAGE.parent}{os.pathsep}{tmp_path / 'own'}")
    assert result.stdout.count(str(tmp_path / "own" / "sitecustomize.py")) == 2


@pytest.mark.parametrize("source", ["1 / 0", "import no_such_module", "x = ="])
def test_the_errors_of_a_hidden_sitecustomize_are_reported_as_by_python(tmp_path, source):
    write(tmp_path / "own" / "sitecustomize.py", source)
    write(tmp_path / "script.py", "print('ran')")
    path = f"{PACKAGE.parent}{os.pathsep}{tmp_path / 'own'}"
    plain = python(tmp_path, "script.py", env={**ENVIRONMENT, "PYTHONPATH": path})
    reached = python(tmp_path, "script.py", env={**ENVIRONMENT, "PYTHONPATH": f"{CHILDREN}{os.pathsep}{path}"})
    assert reached == plain
    assert plain.stdout == "ran\n"
    assert "Error in sitecustomize" in plain.stderr


def test_other_pythons_run_the_file_in_silence(tmp_path):
    names = [f"python{version}" for version in ("2.7", "3.6", "3.7", "3.8", "3.9", "3.10", "3.11", "3.12", "3.13")]
    env = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"}
    tried = []
    for interpreter in filter(None, map(shutil.which, names)):
        show = [interpreter, "-c", "import sys; print(sys.version_info[:2], sys.path)"]
        plain = subprocess.run(show, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
        if plain.returncode == 0:  # and no stand-in that only says where it could be installed from
            tried.append(interpreter)
            env_of_child = {**env, "PYTHONPATH": str(CHILDREN)}
            reached = subprocess.run(show, cwd=tmp_path, env=env_of_child, capture_output=True, text=True, timeout=60)
            assert (reached.returncode, reached.stdout, reached.stderr) == (0, plain.stdout, plain.stderr)
    assert tried


def test_the_file_for_all_pythons_imports_nothing_that_python_has_not_imported():
    source = (CHILDREN / "sitecustomize.py").read_text()
    assert {line for line in source.splitlines() if "import " in line} == {"import os", "import sys"}
    code = "import sys; before = set(sys.modules); import hf_lpsgd; print(*sorted(set(sys.modules) - before))"
    loaded = python(PACKAGE.parent, "-c", code, env=ENVIRONMENT).stdout.split()
    assert [name for name in loaded if not name.startswith("hf_lpsgd")] in ([], ["__future__"])
