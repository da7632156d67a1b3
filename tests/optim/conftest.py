import os
import shutil
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from versions import is_before

from hf_lpsgd.optim import kernels
from hf_lpsgd.optim.kernels import choice, cpu, cuda

KERNEL = "triton_kernel"

# What an optimizer is given to use each implementation. "triton" is that of CUDA, interpreted on the CPU.
IMPLEMENTATIONS = {
    "default": {},
    "single": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "triton": {"fused": True},
}


class TrustsAll(dict):
    """What is known of the kernels, where nothing wrong was found in any of them."""

    def __contains__(self, kind):
        return True

    def __missing__(self, kind):
        return None


@pytest.fixture
def load_kernel(monkeypatch):
    """Imports the Triton kernel anew, to be compiled or to be interpreted on the CPU, until the test ends."""

    def load(*, interpret):
        pytest.importorskip("triton")
        if is_before("triton", "3.3"):
            pytest.skip("triton before 3.3 cannot interpret the kernel, and compiles it by another interface")
        monkeypatch.setenv("TRITON_INTERPRET", "1" if interpret else "0")
        monkeypatch.delattr(kernels, KERNEL, raising=False)
        monkeypatch.delitem(sys.modules, f"hf_lpsgd.optim.kernels.{KERNEL}", raising=False)
        return import_module(f"hf_lpsgd.optim.kernels.{KERNEL}")

    yield load
    # monkeypatch puts back what it deleted, but knows nothing of a first import.
    kernels.__dict__.pop(KERNEL, None)
    sys.modules.pop(f"hf_lpsgd.optim.kernels.{KERNEL}", None)


@pytest.fixture
def implement(monkeypatch, load_kernel):
    """Makes an implementation usable on the CPU, and returns the options that ask for it."""

    def prepare(name):
        reason = cpu.why_unavailable(torch.device("cpu")) if name == "fused" else None
        if reason is not None:
            (pytest.fail if "CI" in os.environ and shutil.which("c++") else pytest.skip)(reason)
        if name == "triton":
            load_kernel(interpret=True)
            on_cpu = SimpleNamespace(step=cuda.step, supports=cuda.supports, why_unavailable=lambda device: None)
            monkeypatch.setattr(choice, "FUSED_KERNELS", {"cpu": on_cpu})
            monkeypatch.setattr(
                choice, "_found_wrong", TrustsAll()
            )  # the interpreter rounds bfloat16 otherwise than a GPU
        return IMPLEMENTATIONS[name]

    return prepare


@pytest.fixture
def kernel_calls(monkeypatch):
    """Numbers of tensors that the fused kernels, of the CPU and of CUDA, were called with."""
    calls = []

    def recorded(real):
        def step(tensors, hyper):
            calls.append(len(tensors.params))
            return real(tensors, hyper)

        return step

    monkeypatch.setattr(choice, "_found_wrong", TrustsAll())  # or the calls that prove the kernel would be counted
    for module in (cpu, cuda):
        monkeypatch.setattr(module, "step", recorded(module.step))
    return calls
