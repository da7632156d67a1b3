"""What the installed versions of libraries lack."""

from importlib.metadata import version

import pytest
from packaging.version import Version

# It reads the optimizer's state to a device "cpu:0", which torch does not know.
resumes_processes_on_a_cpu = pytest.mark.skipif(
    Version(version("transformers")) < Version("5.18"),
    reason="before 5.18, the Trainer of transformers resumes no run of several processes on a CPU",
)
