"""Runs a script several times with the imports paid for once, as one process of however many.

    no_trainer_worker.py SCRIPT REQUESTS.json RESULTS

REQUESTS.json maps names to {"argv": [...], "save_fails": true or false}, the latter optional; each run is as
`python SCRIPT ARGV`, and RESULTS-RANK.json maps the names to what came of it.
"""

import contextlib
import io
import json
import os
import runpy
import sys
import traceback
from datetime import timedelta

import torch
from accelerate import accelerator
from accelerate.checkpointing import save_custom_state
from accelerate.state import AcceleratorState, GradientState


def cut_off(*args, **kwargs):
    raise OSError("the save was cut off")


def run(script, argv, save_fails=False):
    sys.argv = [script, *argv]
    accelerator.save_custom_state = cut_off if save_fails else save_custom_state
    output, status = io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as error:
            status = error.code
        except Exception:
            traceback.print_exc()
            status = 1
    state = AcceleratorState() if AcceleratorState._shared_state else None
    result = {
        "status": status,
        "output": output.getvalue(),
        "processes": state and state.num_processes,
        "distributed_type": state and state.distributed_type.value,
    }
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return result


def main():
    script, requests, results = sys.argv[1:]
    sys.path.insert(0, os.path.dirname(script))
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        # One process group for all runs: a second would find the first one's addresses in the launcher's store.
        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=120))
    destroy_process_group = torch.distributed.destroy_process_group
    torch.distributed.destroy_process_group = lambda group=None: None
    with open(requests) as file:
        done = {name: run(script, **request) for name, request in json.load(file).items()}
    with open(f"{results}-{os.environ.get('RANK', '0')}.json", "w") as file:
        json.dump(done, file)
    if torch.distributed.is_initialized():
        destroy_process_group()


if __name__ == "__main__":
    main()
