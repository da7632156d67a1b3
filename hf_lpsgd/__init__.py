"""LPSGD and LPSGDM for PyTorch and the Hugging Face stack.

Importing this package makes `lpsgd` and `lpsgdm` valid for `TrainingArguments(optim=...)`, if a suitable transformers
is installed. `hf_lpsgd.optim` and `hf_lpsgd.schedules` need torch alone.
"""

from importlib.util import find_spec as _find_spec

from .optim import LPSGD, LPSGDM
from .optim.layerwise import step_in_backward
from .schedules import PScheduleTie, tie_p_schedule
from .version import __version__

__all__ = ["LPSGD", "LPSGDM", "PScheduleTie", "__version__", "step_in_backward", "tie_p_schedule"]

try:
    _has_transformers = _find_spec("transformers") is not None
except ValueError:  # a module without a spec is in its place
    _has_transformers = False

if _has_transformers:
    from .trainer import register as _register

    try:
        _register()
    except ImportError as error:
        from .notices import warn_user as _warn_user

        _warn_user(f"hf_lpsgd did not register with the Trainer: {error}")
