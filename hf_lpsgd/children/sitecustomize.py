"""Makes the optimizers known to each Python that starts with this folder in PYTHONPATH: see hf_lpsgd.runner.

Any Python may run this file, also 2.7, and one without hf_lpsgd: then it changes nothing and says nothing.
"""

import os
import sys

here = os.path.dirname(os.path.abspath(__file__))
sys.path.remove(here)  # a program sees the path that it always sees
root = os.path.dirname(os.path.dirname(here))
is_clone = "-packages" not in os.path.basename(root)  # which may be found by the current folder alone
sys.path += [root] if is_clone else []
try:  # noqa: SIM105
    __import__("hf_lpsgd")
except Exception:  # not installed there, or that Python is too old for it
    pass
if is_clone:
    sys.path.pop()
# The file of this name that this one hides. Where there is none, Python sees the ImportError that it expects.
del sys.modules["sitecustomize"]
__import__("sitecustomize")
