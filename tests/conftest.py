import os

from paths import QUICK_PYTHON

# For this process, those of pytest-xdist, and all that they start. Threads that wait for work do not take the cores
# from each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
if str(QUICK_PYTHON) not in folders:
    os.environ["PYTHONPATH"] = os.pathsep.join([str(QUICK_PYTHON), *filter(None, folders)])
