"""Runs a script as the main program, and leaves without Python's shutdown: `leave.py SCRIPT ARGUMENTS`.

The threads of gloo live on in a process that has had a DDP model, whatever is destroyed. Now and then one of them is
still at work while Python shuts down, and torch then aborts a process that has done all its work. A script that fails
ends as it would by itself.
"""

import os
import runpy
import sys

if __name__ == "__main__":
    del sys.argv[0]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
