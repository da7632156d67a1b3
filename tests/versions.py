"""Marks of tests that need more than the oldest supported versions of transformers and Accelerate."""

from importlib.metadata import version

import pytest
from packaging.version import Version


def needs(package, oldest, lacking):
    return pytest.mark.skipif(
        Version(version(package)) < Version(oldest), reason=f"{package} before {oldest} {lacking}"
    )


accumulates_gradients = needs("transformers", "5.5.4", "divides gradients by the accumulation steps twice")
# It reads the optimizer's state to a device "cpu:0", which torch does not know.
resumes_processes_on_a_cpu = needs("transformers", "5.18", "resumes no run of several processes on a CPU")
knows_fsdp2 = needs("accelerate", "1.6", "has no FSDP2")
