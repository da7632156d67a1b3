"""What a bug report needs to know of a machine: `python -m hf_lpsgd --env` prints it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from .optim import OPTIMIZERS
from .optim.functional import default_implementation
from .optim.kernels import cpu
from .version import __version__

_PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "accelerate",
    "deepspeed",
    "datasets",
    "huggingface_hub",
    "aenum",
    "numpy",
)

_WORDS = {
    "fused": "fused",
    "foreach": "torch's foreach operations",
    "single": "torch's operations, one tensor at a time",
}


def describe_environment() -> str:
    """The versions in use, whether the Trainer knows the optimizers, and what updates tensors on each device.

    Returns:
        Lines of `name: value`.
    """
    rows = [
        ("hf_lpsgd", __version__),
        ("Python", f"{platform.python_version()} on {platform.platform()}"),
        *((package, _version_of(package)) for package in _PACKAGES),
        ("Trainer", _trainer()),
        *_devices(),
    ]
    width = max(len(name) for name, _ in rows) + 1
    return "\n".join(f"{name + ':':<{width}} {value}" for name, value in rows)


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _trainer() -> str:
    names = " and ".join(OPTIMIZERS)
    try:
        from .trainer import register

        register()
        from transformers.training_args import OptimizerNames

        missing = set(OPTIMIZERS) - {str(member.value) for member in OptimizerNames}
        return f"does not know {' and '.join(sorted(missing))}" if missing else f"knows --optim {names}"
    except ImportError as error:
        return f"does not know {names}: {' '.join(str(error).split())}"


def _devices() -> Iterator[tuple[str, str]]:
    instructions = cpu.instructions()
    details = f"{os.cpu_count()} CPUs, {torch.get_num_threads()} threads"
    if instructions is not None:
        details += f", fused step compiled for {instructions}"
    yield "cpu", f"{_implementation(torch.device('cpu'))} ({details})"
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        major, minor = torch.cuda.get_device_capability(index)
        which = _implementation(torch.device("cuda", index))
        yield f"cuda:{index}", f"{which} ({name}, compute capability {major}.{minor})"
    if not torch.cuda.is_available():
        yield "cuda", "no device"
    for other in ("xpu", "mps", "mtia"):
        module = getattr(torch, other, None)
        if module is not None and module.is_available():
            yield other, _implementation(torch.device(other))


def _implementation(device: torch.device) -> str:
    name, why_not_fused = default_implementation(device)
    return _WORDS[name] if why_not_fused is None else f"{_WORDS[name]}; not fused: {why_not_fused}"
