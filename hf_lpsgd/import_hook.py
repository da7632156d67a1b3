"""Registers the optimizers with other libraries when those are imported, so that nobody has to import them before.

Each Python that the runner reaches imports this module at its start. So it imports nothing before it is needed.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

# What is awaited, and the module whose `register()` is called then: by name, since both may be imported anew.
_AWAITED = {
    "transformers.training_args": "hf_lpsgd.trainer",
    "transformers.trainer_optimizer": "hf_lpsgd.trainer",
    "transformers.trainer": "hf_lpsgd.trainer",
    "timm.optim": "hf_lpsgd.integrations.timm",
}


def register_when_imported() -> None:
    """Register with each awaited module: now, where it is imported already, or else as soon as it is."""
    sys.meta_path[:] = [AfterImport(), *(finder for finder in sys.meta_path if type(finder).__module__ != __name__)]
    for ours in dict.fromkeys(ours for awaited, ours in _AWAITED.items() if awaited in sys.modules):
        _register(ours)


class AfterImport:
    """Finds the awaited modules as the other finders do, and registers when one has been imported."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return what the other finders find, with a loader that registers; None for all other modules."""
        if fullname not in _AWAITED:
            return None
        finders = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in finders)), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                try:
                    execute(module)
                except Exception as error:
                    if module.__name__ == fullname:
                        _say(f"{fullname.partition('.')[0]} cannot be imported: {first_cause(error)}")
                    raise
                if module.__name__ == fullname:  # some loaders load more than one
                    _register(_AWAITED[fullname])

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def first_cause(error: BaseException) -> str:
    """Return in one line the error that a chain of errors began with: those that wrap it say less."""
    for _ in range(20):  # a bound, since a chain can be a ring
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__) or error
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _register(ours: str) -> None:
    try:
        __import__(ours, fromlist=["register"]).register()
    except Exception as error:
        _say(str(error))


def _say(message: str) -> None:
    if "partially initialized module 'transformers." in message:
        return  # hf_lpsgd is imported in the midst of it, and registers at the end of what is awaited
    from .notices import warn_once

    warn_once(f"hf_lpsgd did not register its optimizers: {message}")
