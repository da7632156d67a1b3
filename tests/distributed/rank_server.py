"""Starts groups of ranks for tests, each rank a process of its own.

Importing the Trainer and DeepSpeed takes longer than the runs themselves, so ranks are forked off this process, which
has imported them. A line of JSON on stdin asks for one group, a line on stdout tells the ranks' exit codes.
"""

import gc
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

# Without Dynamo, DeepSpeed's import of it is cheap; nothing here compiles.
os.environ.update(DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", TORCHDYNAMO_DISABLE="1")

import deepspeed
import rank_tasks
import torch

# DeepSpeed would compile another way between the processes of one machine; gloo needs no compiler.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def be_rank(rank, job):
    folder, world_size = Path(job["folder"]), job["world_size"]
    log = os.open(folder / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(job["env"])
    if world_size > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1")
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
        )
    getattr(rank_tasks, job["task"])(job["spec"], folder)


def run_group(job):
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=be_rank, args=(rank, job)) for rank in range(job["world_size"])]
    for process in ranks:
        process.start()
    deadline = time.monotonic() + job["timeout"]
    for process in ranks:
        process.join(max(deadline - time.monotonic(), 0))
    for process in ranks:
        process.kill()
        process.join()
    return [process.exitcode for process in ranks]


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    gc.freeze()
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(run_group(json.loads(line))), file=answers, flush=True)
