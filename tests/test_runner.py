"""The runner: it becomes the command that it is given, and every Python under it knows the optimizers.

Exit status and output are compared with those of plain `python`. No program here imports torch, so that each starts in
milliseconds. test_runner_training.py trains.
"""

import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from launch import obey_interrupts, python, write

PACKAGE = Path(importlib.util.find_spec("hf_lpsgd").origin).parent
CHILDREN = PACKAGE / "children"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
ENVIRONMENT["PYTHONPATH"] = str(PACKAGE.parent)
# Whether a program is reached: the optimizers are registered when transformers is imported.
REACHED = "any(type(finder).__module__ == 'hf_lpsgd.import_hook' for finder in sys.meta_path)"


@pytest.fixture
def both(tmp_path):
    """Runs `python ARGUMENTS` in tmp_path, without and with the runner; returns what both gave, if it is the same."""

    def run(*arguments, options=(), **variables):
        env = {**ENVIRONMENT, **variables}
        with ThreadPoolExecutor() as pool:
            plain = pool.submit(python, tmp_path, *options, *arguments, env=env)
            under = pool.submit(python, tmp_path, *options, "-m", "hf_lpsgd", *arguments, env=env)
        assert under.result() == plain.result()
        return plain.result()

    return run


def under_the_runner(folder, *arguments, options=(), **variables):
    return python(folder, *options, "-m", "hf_lpsgd", *arguments, env={**ENVIRONMENT, **variables})


DESCRIBE = """
'''Describes the program it is part of.'''
import sys
import neighbour
for name, value in sorted(globals().items()):
    print(name, repr(value).split(" object at")[0])
main = sys.modules["__main__"]
print(type(main), main.__dict__ is globals(), __builtins__ is sys.modules["builtins"])
print(sys.argv, sys.path, vars(__loader__), neighbour.__file__)
"""


@pytest.mark.parametrize(
    "program",
    [
        ("folder/describe.py",),
        ("./folder//describe.py",),
        ("folder/../folder/describe.py",),
        ("ABSOLUTE/folder/describe.py",),
        ("link.py",),
        ("folder/describe.pyc",),
        ("application",),
        ("./application/",),
        ("application.zip",),
        ("-m", "package"),
        ("-m", "package.describe"),
        ("-mpackage.describe",),
    ],
    ids=" ".join,
)
def test_program_finds_argv_path_and_main_as_under_python(both, tmp_path, program):
    for name in ("folder/describe.py", "application/__main__.py", "package/describe.py", "package/__main__.py"):
        write(tmp_path / name, DESCRIBE)
        write((tmp_path / name).parent / "neighbour.py", "")
    write(tmp_path / "neighbour.py", "")
    write(tmp_path / "package/__init__.py", "import sys; print(sys.argv)")
    (tmp_path / "link.py").symlink_to("folder/describe.py")
    with zipfile.ZipFile(tmp_path / "application.zip", "w") as archive:
        archive.writestr("__main__.py", DESCRIBE)
        archive.writestr("neighbour.py", "")
    if program[0].endswith(".pyc"):
        python(tmp_path, "-c", "import py_compile; py_compile.compile('folder/describe.py', 'folder/describe.pyc')")
    program = [word.replace("ABSOLUTE", str(tmp_path)) for word in program]

    result = both(*program, "-m", "--help", "a b", "")

    assert result.returncode == 0, result.stderr
    assert "__name__ '__main__'" in result.stdout
    assert "'-m', '--help', 'a b', '']" in result.stdout


@pytest.mark.skipif(sys.version_info < (3, 11), reason="-P came with Python 3.11")
@pytest.mark.parametrize("program", [("script.py",), ("application",)], ids=" ".join)
def test_safe_path_is_respected(both, tmp_path, program):
    for name in ("script.py", "application/__main__.py"):
        write(tmp_path / name, "import sys; print(sys.path)")
    result = both(*program, options=["-P"])
    assert (f"'{tmp_path}'" in result.stdout, f"'{tmp_path}/application'" in result.stdout) == (
        False,
        program == ("application",),
    )


def test_main_module_serves_pickle_spawn_inspect_and_typing(both, tmp_path):
    (tmp_path / "script.py").write_bytes(
        """# -*- coding: latin-1 -*-
import atexit, dataclasses, inspect, multiprocessing, os, pickle, sys, typing

@dataclasses.dataclass
class Point:
    x: int
    next: "Point | None" = None

def double(point):
    return Point(point.x * 2)

def bye():
    print("bye", Point(3) == pickle.loads(pickle.dumps(Point(3))))

if __name__ == "__main__":
    atexit.register(bye)
    print(pickle.loads(pickle.dumps(Point(1))), typing.get_type_hints(Point), Point.__module__)
    print(inspect.getsource(double), inspect.getfile(Point), inspect.getmodule(double).__name__)
    print(double.__annotations__, Point.__annotations__, ascii("\u00e9"))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(double, [Point(2), Point(3)]))
""".encode("latin-1")
    )
    result = both("script.py")
    assert result.returncode == 0, result.stderr
    assert "def double(point):" in result.stdout
    assert "'\\xe9'" in result.stdout
    assert "[Point(x=4, next=None), Point(x=6, next=None)]" in result.stdout
    assert result.stdout.endswith("bye True\n")


ENDINGS = {
    "end": ("print('done')", 0, ""),
    "exit number": ("import sys; sys.exit(3)", 3, ""),
    "exit message": ("import sys; sys.exit('no such thing')", 1, "no such thing"),
    "exit, with the hook as it was": (
        "import atexit, sys\natexit.register(lambda: print(sys.excepthook is sys.__excepthook__))\nsys.exit(3)",
        3,
        "",
    ),
    "exit in a function": ("import sys\ndef f():\n    raise SystemExit(7)\nf()", 7, ""),
    "hard exit": ("import os; os._exit(5)", 5, ""),
    "uncaught": ("def f():\n    raise ValueError('bad')\nf()", 1, "ValueError: bad"),
    "chained": (
        "def f():\n    1 / 0\ntry:\n    f()\nexcept ZeroDivisionError as error:\n    raise KeyError('k') from error",
        1,
        "direct cause",
    ),
    "in handling": ("try:\n    1 / 0\nexcept ZeroDivisionError:\n    undefined", 1, "During handling"),
    "in an import": ("import broken", 1, "ImportError: broken"),
    "syntax error": ("x = 1\ny = = 2\n", 1, "SyntaxError"),
    "interrupt": ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt"),
    "interrupted by signal": (
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)",
        -signal.SIGINT,
        "KeyboardInterrupt",
    ),
    "killed": ("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
    "own hook": (
        "import sys, traceback\n"
        "def hook(kind, value, tb):\n"
        "    traceback.print_exception(kind, value, tb)\n"
        "    print([f.name for f in traceback.extract_tb(tb)], value.__traceback__ is tb, sys.last_traceback is tb)\n"
        "sys.excepthook = hook\n"
        "raise ValueError('bad')",
        1,
        "ValueError: bad",
    ),
    "hook that exits": (
        "import sys\nsys.excepthook = lambda *a: sys.exit(9)\nraise ValueError('bad')",
        9,
        "",
    ),
    "exit handler and thread after an error": (
        "import atexit, threading\n"
        "atexit.register(print, 'handler')\n"
        "threading.Thread(target=lambda: (threading.main_thread().join(), print('thread'), 1 / 0)).start()\n"
        "raise ValueError('bad')",
        1,
        "ValueError: bad",
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_script_ends_as_under_python(both, tmp_path, ending):
    source, returncode, message = ENDINGS[ending]
    write(tmp_path / "script.py", source)
    write(tmp_path / "broken.py", "raise ImportError('broken')")
    result = both("script.py")
    assert result.returncode == returncode
    assert message in result.stderr


@pytest.mark.parametrize(
    ("module", "returncode", "message"),
    [
        ("uncaught", 1, "ValueError: bad"),
        ("syntax", 1, "SyntaxError"),
        ("exit", 4, ""),
        ("interrupt", -signal.SIGINT, "KeyboardInterrupt"),
        ("package.module", 1, "ZeroDivisionError"),
        ("package", 1, "ZeroDivisionError"),
        ("no_main", 1, "cannot be directly executed"),
        ("no_such_module", 1, "No module named no_such_module"),
        ("uncaught.py", 1, "uncaught.py"),
        (".relative", 1, "Relative module names not supported"),
    ],
)
def test_module_ends_as_under_python(both, tmp_path, module, returncode, message):
    write(tmp_path / "uncaught.py", "raise ValueError('bad')")
    write(tmp_path / "syntax.py", "x = = 1")
    write(tmp_path / "exit.py", "import sys; sys.exit(4)")
    write(tmp_path / "interrupt.py", "raise KeyboardInterrupt")
    write(tmp_path / "package/__init__.py", "1 / 0")
    write(tmp_path / "no_main/__init__.py", "")
    result = both("-m", module)
    assert result.returncode == returncode
    assert message in result.stderr


@pytest.mark.parametrize(
    ("name", "returncode", "message"),
    [
        ("missing.py", 2, "can't open file"),
        ("it's missing.py", 2, "can't open file"),
        ("missing/script.py", 2, "can't open file"),
        ("empty", 1, "can't find '__main__' module"),
    ],
)
def test_what_cannot_be_run_is_refused_as_by_python(both, tmp_path, name, returncode, message):
    (tmp_path / "empty").mkdir()
    result = both(name, "argument")
    assert result.returncode == returncode
    assert message in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a script"),
        (["-m"], "-m needs"),
        (["--optim", "lpsgdm"], "unknown option '--optim'"),
        (["no_such_command"], "'no_such_command' is no file here, and no command beside"),
    ],
    ids=["nothing", "-m alone", "option", "no such command"],
)
def test_wrong_usage_exits_2_and_says_what_is_expected(tmp_path, arguments, message):
    result = under_the_runner(tmp_path, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert "usage: python -m hf_lpsgd SCRIPT" in result.stderr
    assert message in result.stderr


@pytest.mark.parametrize("option", ["-E", "-I", "-S"])
def test_options_that_would_hide_the_optimizers_are_refused(tmp_path, option):
    # -E and -I hide this checkout too, if it is not installed.
    start = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); from hf_lpsgd.runner import main; main()"
    result = python(tmp_path, option, "-c", start, "script.py", env=ENVIRONMENT)
    assert result.returncode == 2
    assert "-E, -I and -S would hide the optimizers from what is started: leave them out" in result.stderr


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_goes_to_stdout_and_exits_0(tmp_path, option):
    result = under_the_runner(tmp_path, option)
    assert (result.returncode, result.stderr) == (0, "")
    assert "usage: python -m hf_lpsgd SCRIPT" in result.stdout


@pytest.mark.parametrize("options", [["-u"], ["-OO", "-X", "dev"], ["-uB", "-W", "error"]], ids=" ".join)
def test_options_of_the_interpreter_are_those_of_the_program(both, tmp_path, options):
    write(tmp_path / "script.py", "import sys; print(sys.flags, sys.warnoptions, sys._xoptions, sys.orig_argv)")
    result = both("script.py", "-u", options=options)
    assert result.returncode == 0
    merged = python(tmp_path, *options[:-1], f"{options[-1]}", "-Bmhf_lpsgd", "script.py", env=ENVIRONMENT)
    assert "dont_write_bytecode=1" in merged.stdout


def test_the_file_of_hf_lpsgd_run_is_another_name_of_the_module(tmp_path):
    entry = tmp_path / "bin" / "hf-lpsgd-run"
    write(entry, "import sys\nfrom hf_lpsgd.runner import main\nsys.exit(main())")
    write(tmp_path / "script.py", f"import sys; print(sys.orig_argv[1:], {REACHED})")
    result = python(tmp_path, "-u", entry, "script.py", "a", env=ENVIRONMENT)
    assert result == (0, "['-u', 'script.py', 'a'] True\n", "")


@pytest.mark.parametrize("name", [("script.py",), ("-m", "script"), ("./command",)], ids=" ".join)
@pytest.mark.parametrize("flag", ["--local_rank=1", "--local-rank=1"])
def test_the_rank_that_a_launcher_puts_first_goes_behind_the_name(tmp_path, flag, name):
    write(tmp_path / "script.py", "import sys; print(sys.argv[1:])")
    write(tmp_path / "command", f'#!/bin/sh\nexec {sys.executable} script.py "$@"')
    (tmp_path / "command").chmod(0o755)
    assert under_the_runner(tmp_path, flag, *name, "a b") == (0, f"['{flag}', 'a b']\n", "")


SHOW = f"import sys; print('{{}}', sys.argv[1:], {REACHED})"


def console_script(path, says, interpreter=sys.executable):
    write(path, f"#!{interpreter}\n{SHOW.format(says)}\n")
    path.chmod(0o755)


@pytest.fixture
def tools(tmp_path):
    """An interpreter with a console script beside it, and folders on PATH with console scripts and other commands."""
    for folder, names in {"venv": ["train", "sft"], "path": ["sft", "tool"]}.items():
        for name in names:
            console_script(tmp_path / folder / name, f"{folder}/{name}")
    write(tmp_path / "path" / "shell", f'#!/bin/sh\nexec {sys.executable} -c "{SHOW.format("shell")}" $@\n')
    (tmp_path / "path" / "shell").chmod(0o755)
    interpreter = tmp_path / "venv" / "python"
    interpreter.symlink_to(sys.executable)
    env = {**ENVIRONMENT, "PATH": f"{tmp_path / 'path'}{os.pathsep}{ENVIRONMENT['PATH']}"}
    work = tmp_path / "work"
    work.mkdir()

    def run(*arguments):
        command = [interpreter, "-m", "hf_lpsgd", *arguments]
        return subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, timeout=60)

    return work, run


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["train", "-x", "a b"], "venv/train ['-x', 'a b'] True"),
        (["sft"], "venv/sft [] True"),  # and not the one on PATH
        (["tool", "--optim", "lpsgdm"], "path/tool ['--optim', 'lpsgdm'] True"),
        (["../path/tool"], "path/tool [] True"),
        (["shell", "a"], "shell ['a'] True"),
        (["../path/shell", "a"], "shell ['a'] True"),
        (["sh", "-c", "exec shell a"], "shell ['a'] True"),
        (["python", "-c", SHOW.format("python")], "python [] True"),
        ([sys.executable, "-c", SHOW.format("python")], "python [] True"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else None,
)
def test_a_command_is_found_beside_the_interpreter_and_then_on_path(tools, command, says):
    _, run = tools
    result = run(*command)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{says}\n", "")


def test_a_folder_counts_only_if_it_can_be_run_and_a_file_counts(tools):
    work, run = tools
    write(work / "sft" / "module.py", "")
    assert run("sft").stdout == "venv/sft [] True\n"
    write(work / "sft" / "__main__.py", SHOW.format("folder"))
    assert run("sft").stdout == "folder [] True\n"
    write(work / "train", SHOW.format("file"))
    assert run("train").stdout == "file [] True\n"


def test_the_interpreter_of_a_script_is_told_by_its_name(tools):
    work, run = tools
    (work / "python-tools").mkdir()
    (work / "python-tools" / "bash").symlink_to(shutil.which("sh"))
    write(work / "script", f"#!{work}/python-tools/bash\necho shell\n")
    (work / "script").chmod(0o755)
    assert run("./script").stdout == "shell\n"


def test_a_clone_that_the_current_folder_alone_finds_is_known_to_the_command(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "hf_lpsgd", ignore=shutil.ignore_patterns("__pycache__"))
    write(tmp_path / "script.py", f"import sys; print({REACHED}, sys.path.count({str(tmp_path)!r}))")
    env = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"}
    done = python(tmp_path, "-S", "-c", "import hf_lpsgd.runner as r, sys; print(r.__file__)", env=env)
    assert done.stdout.startswith(str(tmp_path))
    path = {**env, "PYTHONPATH": str(tmp_path / "hf_lpsgd" / "children")}
    assert python(tmp_path, "script.py", env=path).stdout == "True 1\n"


def test_the_process_and_its_signals_are_those_of_the_command(both, tmp_path):
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
def test_python_path_keeps_its_entries_and_their_order(both, tmp_path, before, after):
    write(tmp_path / "script.py", "import sys; print(sys.path)")
    both("script.py", PYTHONPATH=f"{before}{PACKAGE.parent}{after}".replace(":", os.pathsep))


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


def test_the_sitecustomize_that_is_hidden_is_run_and_keeps_its_place(both, tmp_path):
    write(tmp_path / "own" / "sitecustomize.py", "import sys; print('own', __name__, __file__)")
    write(tmp_path / "script.py", "import sys; print(sys.modules['sitecustomize'].__file__, sys.path)")
    result = both("script.py", PYTHONPATH=f"{PACKAGE.parent}{os.pathsep}{tmp_path / 'own'}")
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
