"""The compiled kernel of the CPU: when it is called, the bits it gives, and its instruction sets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_lpsgd.optim import functional
from hf_lpsgd.optim.kernels import choice, cpu


def test_a_compiled_kernel_that_is_broken_or_of_another_version_is_not_called(implement, monkeypatch, tmp_path):
    implement("fused")
    (tmp_path / "_cpu_kernel.so").write_text("not a library")
    try:
        with monkeypatch.context() as patch:
            patch.setattr(cpu, "__file__", str(tmp_path / "cpu.py"))
            cpu._library.cache_clear()
            assert "cannot be loaded" in choice.why_not_fused(torch.device("cpu"))
        with monkeypatch.context() as patch:
            patch.setattr(cpu, "_INTERFACE", -1)
            cpu._library.cache_clear()
            assert "another version" in choice.why_not_fused(torch.device("cpu"))
    finally:
        cpu._library.cache_clear()
    assert choice.why_not_fused(torch.device("cpu")) is None


@pytest.mark.parametrize("fill", [b"", b"\0"], ids=["cut", "zeros"])
def test_a_compiled_kernel_that_was_written_in_part_is_not_loaded(fill, implement, tmp_path):
    """Reading past its end would end the process, so other processes try, at several lengths."""
    implement("fused")
    whole = Path(cpu.__file__).with_name("_cpu_kernel.so").read_bytes()
    for length in (20, 600, len(whole) // 10, len(whole) // 2, 9 * len(whole) // 10, len(whole) - 64):
        folder = tmp_path / str(length)
        folder.mkdir()
        (folder / "_cpu_kernel.so").write_bytes(whole[:length].ljust(len(whole) if fill else 0, b"\0"))
    (tmp_path / "all but a byte").mkdir()
    (tmp_path / "all but a byte" / "_cpu_kernel.so").write_bytes(whole[:-1])
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "_cpu_kernel.so").write_bytes(whole)
    code = """
import sys, torch
from pathlib import Path
from hf_lpsgd.optim.kernels import cpu
for folder in map(Path, sys.argv[1:]):
    cpu.__file__ = str(folder / "cpu.py")
    cpu._library.cache_clear()
    print(folder.name, "cannot be loaded" in (cpu.why_unavailable(torch.device("cpu")) or ""), flush=True)
"""
    folders = sorted(tmp_path.iterdir(), key=lambda folder: folder.name == "whole")
    shown = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True, timeout=240)
    assert shown.returncode == 0, (shown.stdout, shown.stderr)
    assert shown.stdout.splitlines() == [f"{folder.name} {folder.name != 'whole'}" for folder in folders]


@pytest.mark.skipif(sys.platform != "linux", reason="torch brings OpenMP under these names on Linux")
def test_the_cpu_kernel_uses_as_many_threads_as_torch_and_one_where_torch_has_no_openmp(implement):
    implement("fused")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert cpu.threads() == 3
    finally:
        torch.set_num_threads(before)
    code = (
        "from hf_lpsgd.optim.kernels import cpu; import torch; torch.set_num_threads(3); "
        "cpu._OPENMP = ('no_such_function',); print(cpu.threads())"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert shown.stdout.strip() == "1", shown.stderr


def test_a_forked_child_of_a_process_that_has_stepped_can_step(implement):
    implement("fused")
    code = """
import multiprocessing, torch
from hf_lpsgd import LPSGDM

def train():
    params = [torch.nn.Parameter(torch.ones(1000)) for _ in range(200)]
    for param in params:
        param.grad = torch.ones(1000)
    LPSGDM(params, fused=True).step()

torch.set_num_threads(2)
train()
child = multiprocessing.get_context("fork").Process(target=train)
child.start()
child.join(60)
print(child.exitcode)
child.kill()
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert shown.stdout.strip() == "0", shown.stderr


def test_the_cpu_kernel_gives_the_same_bits_however_tensors_are_cut_and_on_any_number_of_threads(implement):
    implement("fused")
    generator = torch.Generator().manual_seed(0)
    param, grad, buffer = (torch.randn(200_003, generator=generator) * scale for scale in (1.0, 1e-4, 1e-4))

    def step(pieces, threads):
        tensors = [t.clone() for t in (param, grad, buffer)]
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            functional.lpsgdm(
                *([t[start:end] for start, end in pieces] for t in tensors),
                lr=1e-2,
                momentum=0.9,
                p=20.0,
                eps=1e-8,
                weight_decay=0.1,
                fused=True,
            )
        finally:
            torch.set_num_threads(before)
        return tensors

    whole = step([(0, 200_003)], 1)
    cut = [(0, 1), (1, 38), (38, 70_000), (70_000, 70_017), (70_017, 200_003)]
    for other in (step([(0, 200_003)], 2), step([(0, 200_003)], 5), step(cut, 1), step(cut, 3)):
        assert all(torch.equal(a, b) for a, b in zip(whole, other, strict=True))


@pytest.mark.parametrize("capability", ["default", pytest.param("avx2", marks=pytest.mark.exhaustive)])
def test_the_cpu_kernel_is_as_exact_with_the_lesser_instruction_sets(capability, implement):
    implement("fused")
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this CPU has one instruction set only")
    tests = "(every_step_equals and 20.0 or update_itself) and fused or kernel_gives_the_same or kernel_reads"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not exhaustive", "-k", tests]
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    files = [__file__, str(Path(__file__).with_name("test_step_matches_reference.py"))]
    show = "from hf_lpsgd.optim.kernels import cpu; print(cpu.instructions())"
    shown = subprocess.run([sys.executable, "-c", show], env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.strip().lower() == capability
    result = subprocess.run([*command, *files], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout


def test_the_cpu_kernel_reads_and_rounds_every_number_in_bfloat16_as_torch_does(implement):
    implement("fused")
    dtype = torch.bfloat16
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    kept = every.clone()
    functional.lpsgd([kept], [torch.zeros_like(kept)], lr=0.0, p=2.0, eps=1e-8, weight_decay=0.0, fused=True)
    assert torch.equal(kept.nan_to_num(nan=1.0), every.nan_to_num(nan=1.0))
    assert torch.equal(kept.isnan(), every.isnan())

    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-45, 39, (200_000,), generator=generator)
    values = torch.randn(200_000, generator=generator) * 10.0**exponents
    finite = every[every.isfinite()].float()
    halfway = (finite[:-1] + finite[1:]) / 2
    values = torch.cat([values, halfway, halfway.nextafter(torch.tensor(0.0)), torch.tensor([3e38])])
    rounded = torch.zeros(len(values), dtype=dtype)
    functional.lpsgd([rounded], [-values], lr=1.0, p=2.0, eps=1e-8, weight_decay=0.0, fused=True)
    expected = values.to(dtype)
    agree = (rounded == expected) | (rounded.isnan() & expected.isnan())
    assert agree.all()
