"""Run a script or a module that does not import hf_lpsgd, with `lpsgd` and `lpsgdm` known to the Trainer.

`python -m hf_lpsgd SCRIPT ...` behaves as `python SCRIPT ...` does, in arguments, exit status, `__main__`, `sys.path`
and tracebacks, and `python -m hf_lpsgd -m MODULE ...` as `python -m MODULE ...` does.
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

USAGE = "usage: python -m hf_lpsgd SCRIPT [ARGUMENT ...] | -m MODULE [ARGUMENT ...] | --env | --memory MODEL\n"

HELP = f"""{USAGE}
Run a Python script, directory, zip file or module, unchanged, with "lpsgd" and "lpsgdm" registered with
the transformers Trainer. --env prints the versions and devices that a bug report needs.
--memory prints how much memory a model, named by its folder or config.json, takes with each optimizer.

examples:
  python -m hf_lpsgd train.py --optim lpsgdm --optim_args p_max=20,p_schedule=cosine
  torchrun --nproc_per_node 2 -m hf_lpsgd train.py --optim lpsgdm
  accelerate launch -m hf_lpsgd train.py --optim lpsgdm
"""


def main() -> None:
    """Register the optimizers, then run what `sys.argv` names as the main program."""
    program, *arguments = sys.argv[1:] or [""]
    if program in ("-h", "--help"):
        print(HELP, end="")
        return
    if program == "--env":
        from hf_lpsgd.environment import describe_environment

        print(describe_environment())
        return
    if program == "--memory":
        from hf_lpsgd.memory import describe_memory

        print(describe_memory(arguments))
        return
    is_module = program.startswith("-m")
    if is_module:
        program, *arguments = [program[2:], *arguments] if program != "-m" else arguments or [""]
    elif program.startswith("-"):
        _fail(f"{USAGE}hf_lpsgd: error: unknown option {program!r}: the script's own options come after its name")
    if not program:
        _fail(f"{USAGE}hf_lpsgd: error: {'-m needs the name of a module' if is_module else 'name a script'}")
    try:
        from hf_lpsgd.trainer import register

        register()
    except ImportError as error:
        _fail(f"hf_lpsgd: cannot register its optimizers: {' '.join(str(error).split())}")
    sys.argv = ["-m" if is_module else program, *arguments]
    if is_module:
        _run_as_main(program, True)
    else:
        _run_script(program)


def _fail(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(2)


def _run_as_main(module: str, alter_argv: bool) -> None:
    _become_main()
    # The function that the interpreter itself calls for -m, directories and zip files.
    _call(runpy._run_module_as_main, module, alter_argv)  # type: ignore[attr-defined]


def _run_script(path: str) -> None:
    # The interpreter makes the name absolute without normalizing it, except on Windows.
    filename = os.path.abspath(path) if os.name == "nt" else os.path.join(os.getcwd(), path)
    # `-m` has prepended the current directory, except with -P, and before Python 3.11 with -I.
    has_current_directory = not getattr(sys.flags, "safe_path", sys.flags.isolated)
    if pkgutil.get_importer(filename) is not None:  # a directory or a zip file, with a __main__.py in it
        sys.path[:1] = [filename] if has_current_directory else [filename, *sys.path[:1]]
        _run_as_main("__main__", False)
        return
    try:
        with io.open_code(filename) as file:
            source = file.read()
    except OSError as error:
        _fail(f"{sys.orig_argv[0]}: can't open file {filename!r}: [Errno {error.errno}] {error.strerror}")
    if has_current_directory:
        sys.path[0] = os.path.dirname(os.path.realpath(filename))
    is_compiled = filename.endswith(".pyc")
    loader = (SourcelessFileLoader if is_compiled else SourceFileLoader)("__main__", filename)
    namespace = _become_main(__file__=filename, __cached__=None, __loader__=loader)
    # True: no __future__ of this file
    code = _call(loader.get_code, "__main__") if is_compiled else _call(compile, source, filename, "exec", 0, True)
    _call(exec, code, namespace)


def _become_main(**attributes: Any) -> dict[str, Any]:
    """Put a fresh module in the place of `__main__`, as the interpreter makes it, and return its namespace."""
    module = sys.modules["__main__"] = ModuleType("__main__")
    annotations: dict[str, Any] = {"__annotations__": {}} if sys.version_info < (3, 14) else {}
    vars(module).update({"__builtins__": builtins, **annotations, **attributes})
    return vars(module)


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the function, and let its errors be reported as if the interpreter itself had called it.

    The interpreter itself must end the process, so that threads are joined, exit handlers run and a KeyboardInterrupt
    ends it by SIGINT. So the error is raised on. The frames of the runner are removed where the error is reported.
    """
    try:
        return function(*arguments)
    except SystemExit:
        raise
    except BaseException as raised:
        error, report = raised, sys.excepthook
        start = error.__traceback__ and error.__traceback__.tb_next

        def excepthook(kind: type[BaseException], value: BaseException, traceback: TracebackType | None) -> None:
            if value is error:
                value.__traceback__ = sys.last_traceback = traceback = start
            report(kind, value, traceback)

        sys.excepthook = excepthook
        raise
