"""Run a script or a module that does not import hf_lpsgd, with `lpsgd` and `lpsgdm` known to the Trainer.

`python -m hf_lpsgd SCRIPT ...` behaves as `python SCRIPT ...` does and `python -m hf_lpsgd -m MODULE ...` as
`python -m MODULE ...` does: arguments, exit status, `__main__`, `sys.path` and tracebacks are the same.
"""

import builtins
import io
import os
import pkgutil
import runpy
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader, SourcelessFileLoader
from types import ModuleType, TracebackType
from typing import Any, NoReturn

USAGE = """\
usage: python -m hf_lpsgd SCRIPT [ARGUMENT ...]
       python -m hf_lpsgd -m MODULE [ARGUMENT ...]
       python -m hf_lpsgd --env
"""

HELP = f"""\
{USAGE}
Run a Python script, directory, zip file or module, unchanged, with "lpsgd" and "lpsgdm" registered with
the transformers Trainer. --env prints the versions and devices that a bug report needs.

examples:
  python -m hf_lpsgd train.py --optim lpsgdm --optim_args p_max=20,p_schedule=cosine
  torchrun --nproc_per_node 2 -m hf_lpsgd train.py --optim lpsgdm
  accelerate launch -m hf_lpsgd train.py --optim lpsgdm
"""


def main() -> None:
    """Register the optimizers, then run what `sys.argv` names as the main program."""
    first, *rest = sys.argv[1:] or [""]
    if first in ("-h", "--help"):
        print(HELP, end="")
    elif first == "--env":
        from hf_lpsgd.environment import describe_environment

        print(describe_environment())
    elif first.startswith("-m"):
        module, *arguments = [first[2:], *rest] if first != "-m" else rest or [""]
        if not module:
            _fail(f"{USAGE}hf_lpsgd: error: -m needs the name of a module")
        _register()
        _run_module(module, arguments)
    elif not first:
        _fail(f"{USAGE}hf_lpsgd: error: name a script, or a module with -m")
    elif first.startswith("-"):
        _fail(f"{USAGE}hf_lpsgd: error: unknown option {first!r}: the script's own options come after its name")
    else:
        _register()
        _run_script(first, rest)


def _fail(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(2)


def _register() -> None:
    try:
        from hf_lpsgd.trainer import register

        register()
    except ImportError as error:
        _fail(f"hf_lpsgd: cannot register its optimizers: {' '.join(str(error).split())}")


def _run_module(module: str, arguments: list[str]) -> None:
    sys.argv = ["-m", *arguments]
    _become_main()
    # The function that the interpreter itself calls for -m, directories and zip files.
    _call(runpy._run_module_as_main, module)  # type: ignore[attr-defined]


def _run_script(path: str, arguments: list[str]) -> None:
    sys.argv = [path, *arguments]
    # The interpreter makes the name absolute without normalizing it, except on Windows.
    filename = os.path.abspath(path) if os.name == "nt" else os.path.join(os.getcwd(), path)
    # Before Python 3.11 only -I kept `-m` from prepending the current directory, which the script's replaces.
    safe_path = getattr(sys.flags, "safe_path", sys.flags.isolated)

    if pkgutil.get_importer(filename) is not None:  # a directory or a zip file, with a __main__.py in it
        if not safe_path:
            del sys.path[0]
        sys.path.insert(0, filename)
        _become_main()
        _call(runpy._run_module_as_main, "__main__", False)  # type: ignore[attr-defined]
        return

    try:
        with io.open_code(filename) as file:
            source = file.read()
    except OSError as error:
        _fail(f"{sys.orig_argv[0]}: can't open file {filename!r}: [Errno {error.errno}] {error.strerror}")
    if not safe_path:
        sys.path[0] = os.path.dirname(os.path.realpath(filename))

    if filename.endswith(".pyc"):
        bytecode = SourcelessFileLoader("__main__", filename)
        namespace = _become_main(__file__=filename, __cached__=None, __loader__=bytecode)
        code = _call(bytecode.get_code, "__main__")
    else:
        namespace = _become_main(__file__=filename, __cached__=None, __loader__=SourceFileLoader("__main__", filename))
        code = _call(compile, source, filename, "exec", 0, True)  # True: no __future__ of this file
    _call(exec, code, namespace)


def _become_main(**attributes: Any) -> dict[str, Any]:
    """Put a fresh module in the place of `__main__`, as the interpreter makes it, and return its namespace."""
    module = ModuleType("__main__")
    namespace = vars(module)
    namespace["__builtins__"] = builtins
    if sys.version_info < (3, 14):
        namespace["__annotations__"] = {}
    namespace.update(attributes)
    sys.modules["__main__"] = module
    return namespace


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the function, and let its errors be reported as if the interpreter itself had called it."""
    try:
        return function(*arguments)
    except SystemExit:
        raise
    except BaseException as error:
        here = error.__traceback__
        _report_from(error, here and here.tb_next)
        raise


def _report_from(error: BaseException, start: TracebackType | None) -> None:
    """Make the interpreter's last report of `error` begin at `start`.

    The interpreter itself must end the process: only then are threads joined and exit handlers run, and only then does
    a KeyboardInterrupt end it by SIGINT. So the error is raised on, and collects the runner's frames again on the way.
    They are removed where the error is reported.
    """
    report = sys.excepthook

    def excepthook(kind: type[BaseException], value: BaseException, traceback: TracebackType | None) -> None:
        if value is error:
            value.__traceback__ = sys.last_traceback = traceback = start
        report(kind, value, traceback)

    sys.excepthook = excepthook
