"""Runs a script with DeepSpeed kept from compiling, which takes a minute: `not_compiling.py SCRIPT ARGUMENTS`."""

import os
import runpy
import sys

import deepspeed

if __name__ == "__main__":
    # It is one more way between the processes of one machine; gloo needs no compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    del sys.argv[0]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
