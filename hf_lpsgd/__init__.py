"""LPSGD and LPSGDM for PyTorch and the Hugging Face stack.

Importing this package makes `lpsgd` and `lpsgdm` valid for `TrainingArguments(optim=...)`, if a suitable transformers
is installed. `hf_lpsgd.optim` and `hf_lpsgd.schedules` need torch alone.
"""

from .import_hook import register_when_imported as _register_when_imported
from .version import __version__

TYPE_CHECKING = False  # that of `typing`, which takes longer to import than this package
if TYPE_CHECKING:
    from .optim import LPSGD, LPSGDM
    from .optim.layerwise import step_in_backward
    from .schedules import PScheduleTie, tie_p_schedule

__all__ = ["LPSGD", "LPSGDM", "PScheduleTie", "__version__", "step_in_backward", "tie_p_schedule"]

_MODULES = {"PScheduleTie": "schedules", "step_in_backward": "optim.layerwise", "tie_p_schedule": "schedules"}


def __getattr__(name: str) -> object:
    """Import what is used. Torch takes seconds, and each Python that the runner reaches imports this package."""
    from importlib import import_module

    if name in __all__:
        return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'optim')}"), name)
    if name in ("optim", "schedules", "trainer"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_register_when_imported()
