"""Leave a process without Python's shutdown.

The threads of gloo live on in a process that has had a DDP model, whatever is destroyed. Now and then one of them is
still at work while Python shuts down, and torch then aborts a process that has done all its work. As a program:

    torchrun --nproc_per_node 2 leave.py SCRIPT ARGUMENTS
"""

import os
import runpy
import sys


def leave_without_shutdown():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    del sys.argv[0]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
    leave_without_shutdown()
