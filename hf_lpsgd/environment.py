"""What a bug report needs to know of a machine: `python -m hf_lpsgd --env` prints it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from .optim import OPTIMIZERS
from .optim.functional import default_implementation, why_distrusted
from .optim.kernels import FUSED_KERNELS, cpu
from .version import __version__

_PACKAGES = ("torch", "triton", "transformers", "accelerate", "deepspeed", "datasets", "huggingface_hub", "aenum")


def describe_environment() -> str:
    """Lines of `name: value`: versions, whether the Trainer knows the optimizers, the implementation per device."""
    system = ("Python", f"{platform.python_version()} on {platform.platform()}")
    packages = ((package, _version_of(package)) for package in _PACKAGES)
    rows = [("hf_lpsgd", __version__), system, *packages, ("Trainer", _trainer()), *_options(), *_devices()]
    return "\n".join(f"{name + ':':<16} {value}" for name, value in rows)


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _trainer() -> str:
    names = ", ".join(OPTIMIZERS)
    try:
        from .trainer import register

        register()
    except ImportError as error:
        return f"does not know {names}: {' '.join(str(error).split())}"
    return f"knows --optim {names}"


def _options() -> Iterator[tuple[str, str]]:
    for record in OPTIMIZERS.values():
        if record.ordinary is not None:
            continue
        yield f"{record.name} defaults", ", ".join(f"{name}={value}" for name, value in record.defaults.items())
        with_trainer = ", ".join(f"{name}={value}" for name, value in record.trainer_defaults.items())
        yield f"{record.name} with --optim", with_trainer or "the same"


def _devices() -> Iterator[tuple[str, str]]:
    instructions = cpu.instructions()
    compiled = "" if instructions is None else f", the fused step uses {instructions} on {cpu.threads()} threads"
    threads = f"{os.cpu_count()} CPUs, {torch.get_num_threads()} threads{compiled}"
    yield "cpu", f"{_implementation(torch.device('cpu'))} ({threads})"
    for index in range(torch.cuda.device_count()):
        name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        which = _implementation(torch.device("cuda", index))
        yield f"cuda:{index}", f"{which} ({name}, compute capability {capability[0]}.{capability[1]})"
    if not torch.cuda.is_available():
        yield "cuda", "no device"
    for other in ("xpu", "mps", "mtia"):
        if getattr(getattr(torch, other, None), "is_available", bool)():
            yield other, _implementation(torch.device(other))


def _implementation(device: torch.device) -> str:
    name, why_not_fused = default_implementation(device)
    if name == "fused":
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            if not FUSED_KERNELS[device.type].supports(device, dtype):
                continue
            wrong = why_distrusted(device, (dtype, dtype, dtype))
            if wrong is not None:
                return f"fused, but it is wrong: {wrong}"
    words = {"single": "one tensor at a time"}.get(name, name)
    return words if why_not_fused is None else f"{words}; not fused: {why_not_fused}"
