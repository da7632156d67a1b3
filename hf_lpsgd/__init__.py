"""LPSGD and LPSGDM for PyTorch and the Hugging Face stack.

Importing this package makes `lpsgd` and `lpsgdm` valid for `TrainingArguments(optim=...)`, if a suitable transformers
is installed. `hf_lpsgd.optim` and `hf_lpsgd.schedules` need torch alone.
"""

from .notices import warn_user as _warn_user
from .optim import LPSGD, LPSGDM
from .optim.layerwise import step_in_backward
from .schedules import PScheduleTie, tie_p_schedule
from .trainer import register as _register
from .version import __version__

__all__ = ["LPSGD", "LPSGDM", "PScheduleTie", "__version__", "step_in_backward", "tie_p_schedule"]

try:
    _register()
except ImportError as _error:
    if _error.name != "transformers":  # which plain torch loops need not have
        _warn_user(f"hf_lpsgd did not register with the Trainer: {_error}")
