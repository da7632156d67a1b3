"""What a bug report needs to know of a machine: `python -m hf_lpsgd --env` prints it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from .optim import OPTIMIZERS
from .optim.kernels import cpu
from .optim.kernels.choice import FUSED_KERNELS, implementation_for, why_distrusted, why_not_fused
from .version import __version__

_PACKAGES = ("torch", "triton", "transformers", "accelerate", "deepspeed", "datasets", "huggingface_hub", "aenum")


def describe_environment() -> str:
    """Return lines of `name: value`: versions, and what makes the step on each device."""
    return "\n".join(f"{name + ':':<16} {value}" for name, value in _rows())


def _rows() -> Iterator[tuple[str, str]]:
    yield "hf_lpsgd", __version__
    yield "Python", f"{platform.python_version()} on {platform.platform()}"
    for package in _PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed"
    names = ", ".join(OPTIMIZERS)
    try:
        from .trainer import register

        register()
        yield "Trainer", f"knows --optim {names}"
    except ImportError as error:
        yield "Trainer", f"does not know {names}: {' '.join(str(error).split())}"
    instructions = cpu.instructions()
    compiled = f", the fused step uses {instructions} on {cpu.threads()} threads" if instructions else ""
    yield "cpu", f"{_implementation('cpu')} ({os.cpu_count()} CPUs, {torch.get_num_threads()} threads{compiled})"
    for device in [f"cuda:{index}" for index in range(torch.cuda.device_count())]:
        name, (major, minor) = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        yield device, f"{_implementation(device)} ({name}, compute capability {major}.{minor})"
    if not torch.cuda.is_available():
        yield "cuda", "no device"


def _implementation(where: str) -> str:
    device = torch.device(where)
    name, reason = implementation_for(device), why_not_fused(device)
    for dtype in (torch.float32, torch.bfloat16, torch.float16) if name == "fused" else ():
        wrong = FUSED_KERNELS[device.type].supports(device, dtype) and why_distrusted(device, (dtype, dtype, dtype))
        if wrong:
            return f"fused, but it is wrong: {wrong}"
    words = "one tensor at a time" if name == "single" else name
    return words if reason is None else f"{words}; not fused: {reason}"
