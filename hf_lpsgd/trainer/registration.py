"""Makes the optimizers known to transformers, and replaces nothing there."""

from __future__ import annotations

import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from ..notices import warn_user
from ..optim import OPTIMIZERS
from .optim_args import optimizer_class_and_kwargs

_TRAINER = "transformers.trainer"
_NEEDS = "hf_lpsgd needs transformers>=5.2,<6 (pip install 'transformers>=5.2,<6')"


def register() -> None:
    """Make every name in `hf_lpsgd.optim.OPTIMIZERS` valid for `TrainingArguments(optim=...)`.

    `import hf_lpsgd` calls it. A second call adds only what is new in `OPTIMIZERS`. The names become members of
    `OptimizerNames`, each with a handler, and every Trainer made from now on has the callback that ties and logs p.

    Raises:
        ImportError: transformers is missing, or lacks what this needs; says which and what to install.
    """
    try:
        from transformers.trainer_optimizer import _OPTIMIZER_HANDLERS as handlers
        from transformers.training_args import OptimizerNames as names
    except ImportError as error:
        raise ImportError(f"{_NEEDS}: {error}", name=error.name) from None
    from aenum import extend_enum

    for name in OPTIMIZERS:
        if name not in [member.value for member in names]:
            member = extend_enum(names, name.upper(), name)
            # A pickle of the member, as in training_args.bin, registers where it is read.
            member.__reduce_ex__ = lambda protocol, name=name: (_registered_member, (name,))
        handlers[names(name)] = _handler
    if _TRAINER in sys.modules:
        # Another thread may still be importing it; this waits for that.
        _add_callback(importlib.import_module(_TRAINER))
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        # Importing the Trainer takes seconds, too long for a script that does not use it.
        sys.meta_path.insert(0, _AfterImport())


def _registered_member(name: str) -> Any:
    register()
    from transformers.training_args import OptimizerNames

    return OptimizerNames(name)


def _handler(context: Any) -> tuple[Any, dict[str, Any]]:
    from .callback import LpScheduleCallback

    if LpScheduleCallback not in getattr(sys.modules.get(_TRAINER), "DEFAULT_CALLBACKS", [LpScheduleCallback]):
        raise ValueError(
            "The Trainer does not have the callback of hf_lpsgd, so p would not be annealed: transformers.trainer was "
            "reloaded, or was importing hf_lpsgd. Call hf_lpsgd.trainer.register(), then make a new Trainer."
        )
    return optimizer_class_and_kwargs(context.args)


def _add_callback(trainer_module: ModuleType) -> None:
    from .callback import LpScheduleCallback

    callbacks = getattr(trainer_module, "DEFAULT_CALLBACKS", None)
    if not isinstance(callbacks, list):
        raise ImportError(f"{_NEEDS}: there is no list {_TRAINER}.DEFAULT_CALLBACKS")
    if LpScheduleCallback not in callbacks:
        callbacks.append(LpScheduleCallback)


class _AfterImport(MetaPathFinder):
    """Adds the callback as soon as transformers.trainer is imported."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != _TRAINER:
            return None
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, others), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_add(module: ModuleType) -> None:
                execute(module)
                try:
                    _add_callback(module)
                except ImportError as error:
                    warn_user(f"hf_lpsgd did not register with the Trainer: {error}")

            spec.loader.exec_module = execute_and_add  # type: ignore[method-assign]
        return spec
