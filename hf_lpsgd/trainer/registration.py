"""Makes the optimizers known to transformers, and replaces nothing there."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from ..import_hook import first_cause
from ..optim import OPTIMIZERS
from .optim_args import optimizer_class_and_kwargs

_CALLBACK = f"{__package__}.callback"  # also the module of a callback from before hf_lpsgd was imported anew
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
    except Exception as error:
        raise ImportError(f"{_NEEDS}: {first_cause(error)}", name=getattr(error, "name", None)) from error
    from aenum import extend_enum

    for name in OPTIMIZERS:
        if name not in [member.value for member in names]:
            member = extend_enum(names, name.upper(), name)
            # A pickle of the member, as in training_args.bin, registers where it is read.
            member.__reduce_ex__ = lambda protocol, name=name: (_registered_member, (name,))
        handlers[names(name)] = _handler
    # There is no list while it is being imported; to wait for the thread that does so can be a deadlock.
    callbacks = getattr(sys.modules.get("transformers.trainer"), "DEFAULT_CALLBACKS", None)
    if callbacks is not None:
        from .callback import LpScheduleCallback

        if LpScheduleCallback not in callbacks:
            callbacks[:] = [*(one for one in callbacks if one.__module__ != _CALLBACK), LpScheduleCallback]


def _registered_member(name: str) -> Any:
    register()
    from transformers.training_args import OptimizerNames

    return OptimizerNames(name)


def _handler(context: Any) -> tuple[Any, dict[str, Any]]:
    frame: FrameType | None = sys._getframe()
    while frame and not hasattr(frame.f_locals.get("self"), "callback_handler"):
        frame = frame.f_back
    if frame:  # the Trainer that asks is among the callers
        _give_callback(frame.f_locals["self"])
    return optimizer_class_and_kwargs(context.args)


def _give_callback(trainer: Any) -> None:
    """Give the callback to a Trainer that lacks it.

    Its program has replaced a list of callbacks, has imported hf_lpsgd while transformers was being imported, or has
    imported either of them anew.
    """
    from .callback import LpScheduleCallback

    callbacks = trainer.callback_handler.callbacks
    if not any(isinstance(callback, LpScheduleCallback) for callback in callbacks):
        callback = LpScheduleCallback()
        # The first, so that p is in the logs before other callbacks report them.
        callbacks[:] = [callback, *(one for one in callbacks if one.__module__ != _CALLBACK)]
        callback.on_init_end(trainer.args, trainer.state, trainer.control)
