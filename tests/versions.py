"""Marks of tests that need more than the oldest supported versions of transformers and Accelerate."""

from importlib.metadata import PackageNotFoundError, version

import pytest
from packaging.version import Version


def is_before(package, oldest):
    try:
        return Version(version(package)) < Version(oldest)
    except PackageNotFoundError:
        return False


def needs(package, oldest, lacking):
    return pytest.mark.skipif(is_before(package, oldest), reason=f"{package} before {oldest} {lacking}")


accumulates_gradients = needs("transformers", "5.5.4", "divides gradients by the accumulation steps twice")
# It reads the optimizer's state to a device "cpu:0", which torch does not know.
resumes_processes_on_a_cpu = needs("transformers", "5.18", "resumes no run of several processes on a CPU")
# It takes no momentum for --optim sgd, initializes GPT-2 otherwise, and evaluates at other steps.
repeats_the_studies = needs("transformers", "5.18", "trains the studies' models otherwise than their records")
knows_fsdp2 = needs("accelerate", "1.6", "has no FSDP2")
runs_fsdp2_on_a_cpu = needs("torch", "2.7", "cannot train with FSDP2 on a CPU")
