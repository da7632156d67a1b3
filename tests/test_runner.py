"""The runner: a program ends, prints and finds its files under it as under Python.

No program here imports torch, so that each starts in milliseconds. test_runner_training.py trains.
"""

import signal
import sys
import zipfile

import pytest
from launch import python, write
from under_runner import ENVIRONMENT, PACKAGE, REACHED, run_both, under_the_runner

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
def test_program_finds_argv_path_and_main_as_under_python(tmp_path, program):
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

    result = run_both(tmp_path, *program, "-m", "--help", "a b", "")

    assert result.returncode == 0, result.stderr
    assert "__name__ '__main__'" in result.stdout
    assert "'-m', '--help', 'a b', '']" in result.stdout


@pytest.mark.skipif(sys.version_info < (3, 11), reason="-P came with Python 3.11")
@pytest.mark.parametrize("program", [("script.py",), ("application",)], ids=" ".join)
def test_safe_path_is_respected(tmp_path, program):
    for name in ("script.py", "application/__main__.py"):
        write(tmp_path / name, "import sys; print(sys.path)")
    result = run_both(tmp_path, *program, options=["-P"])
    assert (f"'{tmp_path}'" in result.stdout, f"'{tmp_path}/application'" in result.stdout) == (
        False,
        program == ("application",),
    )


def test_main_module_serves_pickle_spawn_inspect_and_typing(tmp_path):
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
    result = run_both(tmp_path, "script.py")
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
def test_script_ends_as_under_python(tmp_path, ending):
    source, returncode, message = ENDINGS[ending]
    write(tmp_path / "script.py", source)
    write(tmp_path / "broken.py", "raise ImportError('broken')")
    result = run_both(tmp_path, "script.py")
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
def test_module_ends_as_under_python(tmp_path, module, returncode, message):
    write(tmp_path / "uncaught.py", "raise ValueError('bad')")
    write(tmp_path / "syntax.py", "x = = 1")
    write(tmp_path / "exit.py", "import sys; sys.exit(4)")
    write(tmp_path / "interrupt.py", "raise KeyboardInterrupt")
    write(tmp_path / "package/__init__.py", "1 / 0")
    write(tmp_path / "no_main/__init__.py", "")
    result = run_both(tmp_path, "-m", module)
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
def test_what_cannot_be_run_is_refused_as_by_python(tmp_path, name, returncode, message):
    (tmp_path / "empty").mkdir()
    result = run_both(tmp_path, name, "argument")
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
def test_options_of_the_interpreter_are_those_of_the_program(tmp_path, options):
    write(tmp_path / "script.py", "import sys; print(sys.flags, sys.warnoptions, sys._xoptions, sys.orig_argv)")
    result = run_both(tmp_path, "script.py", "-u", options=options)
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
