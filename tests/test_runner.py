"""The runner: scripts and modules run as plain `python` runs them, with the optimizers registered.

Most tests run the real runner in a package whose registration is a stub, so that a process starts in milliseconds, and
compare exit status and output with plain `python`. test_runner_training.py trains with the real
package.
"""

import importlib.util
import os
import shutil
import signal
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from launch import python, write

PACKAGE = Path(importlib.util.find_spec("hf_lpsgd").origin).parent


def make_package(folder, register):
    """A package hf_lpsgd with the real runner and a `register()` of this body."""
    package = folder / "hf_lpsgd"
    package.mkdir(parents=True)
    for name in ("runner.py", "__main__.py"):
        shutil.copy(PACKAGE / name, package)
    (package / "__init__.py").touch()
    (package / "trainer.py").write_text(f"import os\n\n\ndef register():\n    {register}\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return environment | {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return make_package(tmp_path_factory.mktemp("quick"), "os.environ['OPTIMIZERS'] = 'registered'")


@pytest.fixture
def both(tmp_path, quick):
    """Runs `python ARGUMENTS` in tmp_path, without and with the runner; returns what both gave, if it is the same."""

    def run(*arguments, options=()):
        with ThreadPoolExecutor() as pool:
            plain = pool.submit(python, tmp_path, *options, *arguments, env=quick)
            under = pool.submit(python, tmp_path, *options, "-m", "hf_lpsgd", *arguments, env=quick)
        assert under.result() == plain.result()
        return plain.result()

    return run


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


def test_future_imports_of_the_runner_do_not_reach_the_script(tmp_path, quick):
    package = Path(quick["PYTHONPATH"]) / "hf_lpsgd" / "runner.py"
    future = make_package(tmp_path / "future", "pass")
    (tmp_path / "future/hf_lpsgd/runner.py").write_text("from __future__ import annotations\n" + package.read_text())
    write(tmp_path / "script.py", "def f(x: int): pass\nprint(f.__annotations__)")
    assert python(tmp_path, "-m", "hf_lpsgd", "script.py", env=future).stdout == "{'x': <class 'int'>}\n"


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
    assert "runpy" not in result.stderr
    assert "hf_lpsgd" not in result.stderr


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
    [([], "name a script"), (["-m"], "-m needs"), (["--optim", "lpsgdm"], "unknown option '--optim'")],
    ids=["nothing", "-m alone", "option"],
)
def test_wrong_usage_exits_2_and_says_what_is_expected(tmp_path, quick, arguments, message):
    result = python(tmp_path, "-m", "hf_lpsgd", *arguments, env=quick)
    assert (result.returncode, result.stdout) == (2, "")
    assert "usage: python -m hf_lpsgd SCRIPT" in result.stderr
    assert message in result.stderr


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_goes_to_stdout_and_exits_0(tmp_path, quick, option):
    result = python(tmp_path, "-m", "hf_lpsgd", option, env=quick)
    assert (result.returncode, result.stderr) == (0, "")
    assert "usage: python -m hf_lpsgd SCRIPT" in result.stdout


@pytest.mark.parametrize("program", [("script.py",), ("-m", "script"), ("application",)], ids=" ".join)
def test_registration_comes_before_the_program(tmp_path, quick, program):
    write(tmp_path / "script.py", "import os; print(os.environ.get('OPTIMIZERS'))")
    write(tmp_path / "application/__main__.py", "import os; print(os.environ.get('OPTIMIZERS'))")
    assert python(tmp_path, "-m", "hf_lpsgd", *program, env=quick) == (0, "registered\n", "")
    assert python(tmp_path, *program, env=quick) == (0, "None\n", "")


def test_failed_registration_is_one_line_and_nothing_runs(tmp_path):
    broken = make_package(tmp_path / "broken", "raise ImportError('hf_lpsgd needs\\n transformers>=5.2')")
    write(tmp_path / "script.py", "print('ran')")
    assert python(tmp_path, "-m", "hf_lpsgd", "script.py", env=broken) == (
        2,
        "",
        "hf_lpsgd: cannot register its optimizers: hf_lpsgd needs transformers>=5.2\n",
    )
