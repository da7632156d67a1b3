"""The entries in timm's registry of optimizers, for `create_optimizer_v2` and `train.py --opt lpsgdm`."""

from ..optim import OPTIMIZERS


def register() -> None:
    """Add each optimizer with the defaults of `--optim`; p follows the learning rate, which timm's schedulers set."""
    try:
        from timm.optim import OptimInfo, list_optimizers
        from timm.optim._optim_factory import default_registry
    except ImportError:
        return  # an older timm, without a registry
    for name, record in OPTIMIZERS.items():
        if record.ordinary is None and name not in list_optimizers():
            defaults = {**record.trainer_defaults, "p_schedule": "lr"}
            default_registry.register(OptimInfo(name, record.cls, record.description, defaults=defaults))
