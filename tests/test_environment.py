"""`python -m hf_lpsgd --env`, which bug reports quote."""

import sys
from importlib.metadata import version

import pytest
from launch import python

from hf_lpsgd import environment
from hf_lpsgd.optim.kernels import cpu


def rows(text):
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def test_the_command_tells_versions_registration_and_implementations():
    done = python(None, "-m", "hf_lpsgd", "--env")
    assert done.returncode == 0, done.stderr
    shown = rows(done.stdout)
    for package in ("torch", "transformers", "accelerate"):
        assert shown[package] == version(package)
    assert shown["Trainer"] == "knows --optim lpsgd, lpsgdm, lpsgd_layerwise, lpsgdm_layerwise"
    assert shown["cpu"].split()[0] == ("fused" if cpu.instructions() else "one")
    assert "cuda" in done.stdout
    assert all(len(line) < 300 for line in done.stdout.splitlines())


def test_what_is_missing_is_told_with_the_reason(monkeypatch):
    monkeypatch.setattr(cpu, "why_unavailable", lambda device: "it was not compiled")
    monkeypatch.setattr(environment, "_PACKAGES", ("torch", "no-such-package"))
    shown = rows(environment.describe_environment())
    assert shown["cpu"].startswith("one tensor at a time; not fused: it was not compiled")
    assert shown["no-such-package"] == "not installed"


@pytest.mark.parametrize("lacking", ["transformers", "handlers"])
def test_a_trainer_that_cannot_be_extended_is_told_in_one_line(lacking, monkeypatch):
    if lacking == "transformers":
        monkeypatch.delitem(sys.modules, "transformers.trainer_optimizer")
        monkeypatch.setitem(sys.modules, "transformers", None)
    else:
        monkeypatch.setitem(sys.modules, "transformers.trainer_optimizer", None)
    assert rows(environment.describe_environment())["Trainer"].startswith(
        "does not know lpsgd, lpsgdm, lpsgd_layerwise, lpsgdm_layerwise: hf_lpsgd needs transformers>=5.2,<6"
    )
