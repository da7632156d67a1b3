import gc
import os
import shutil
import tempfile

import pytest
from covering import pytest_collection_modifyitems  # noqa: F401
from launch import PRELOADED, ForkServer
from paths import QUICK_PYTHON

from hf_lpsgd import notices

# For this process, those of pytest-xdist, and all that they start. Threads that wait for work do not take the cores
# from each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
if str(QUICK_PYTHON) not in folders:
    os.environ["PYTHONPATH"] = os.pathsep.join([str(QUICK_PYTHON), *filter(None, folders)])


def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        # Two runs side by side share no cache.
        config.hf_home = os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf_home_")


def pytest_unconfigure(config):
    if hasattr(config, "hf_home"):
        shutil.rmtree(config.hf_home, ignore_errors=True)


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
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    environment = {**os.environ, **offline, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    server = ForkServer(tmp_path_factory.mktemp("forks"), PRELOADED, environment)
    yield server
    server.close()
