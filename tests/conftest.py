import contextlib
import gc
import os
import tempfile

import pytest
from covering import pytest_collection_modifyitems  # noqa: F401
from launch import Forks, fork_server
from paths import QUICK_PYTHON

from hf_lpsgd import notices

# For this process, those of pytest-xdist, and all that they start. Threads that wait for work do not take the cores
# from each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
OF_FORKS = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
if str(QUICK_PYTHON) not in folders:
    os.environ["PYTHONPATH"] = os.pathsep.join([str(QUICK_PYTHON), *filter(None, folders)])


def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.of_this_run = contextlib.ExitStack()
        # Two runs side by side share no cache.
        folder = tempfile.TemporaryDirectory(prefix="hf_home_", ignore_cleanup_errors=True)
        os.environ["HF_HOME"] = config.of_this_run.enter_context(folder)
        os.environ["FORK_SERVER"] = config.of_this_run.enter_context(fork_server({**os.environ, **OF_FORKS}))


def pytest_unconfigure(config):
    if hasattr(config, "of_this_run"):
        config.of_this_run.close()


@pytest.fixture(scope="module", autouse=True)
def what_was_imported_is_no_garbage():
    """Keeps the collector away from what is there already: each training collects garbage, a fifth of all the time."""
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_was_said_before():
    """Lets each test hear what is said once in a process."""
    notices.warn_once.cache_clear()


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    """Runs scripts in processes that have imported the Trainer and datasets before."""
    forks = Forks(tmp_path_factory.mktemp("forks"), os.environ["FORK_SERVER"], {**os.environ, **OF_FORKS})
    yield forks
    forks.close()
