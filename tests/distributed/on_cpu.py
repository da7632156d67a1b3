"""Runs a script where there is no accelerator, and writes what its Trainer trained with.

    on_cpu.py FACTS SCRIPT ARGUMENTS

FACTS is the file for the first rank to write to. Where the environment has DIE_WRITING_CHECKPOINT, the first rank is
killed in the middle of writing the checkpoint of that step.
"""

import json
import os
import runpy
import signal
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, PartialState
from transformers import trainer
from transformers.trainer_callback import TrainerCallback


class TellEngine(TrainerCallback):
    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        accelerate_state = AcceleratorState()
        plugin = accelerate_state.deepspeed_plugin if is_deepspeed else None
        facts = {
            "distributed_type": accelerate_state.distributed_type.value,
            "processes": accelerate_state.num_processes,
            "zero_stage": plugin.zero_stage if plugin else None,
            "config": plugin.deepspeed_config if plugin else None,
            "optimizers": [],
            "first_step": state.global_step + 1,
        }
        while optimizer is not None:
            facts["optimizers"].append(type(optimizer).__name__)
            optimizer = getattr(optimizer, "optimizer", None)
        if args.process_index == 0:
            Path(facts_file).write_text(json.dumps(facts, default=str))


def die_before_the_last_files(self, output_dir):
    if self.state.global_step == int(os.environ["DIE_WRITING_CHECKPOINT"]) and self.args.process_index == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    save_rng_state(self, output_dir)


if __name__ == "__main__":
    _, facts_file, script, *arguments = sys.argv
    is_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    if is_deepspeed:
        import deepspeed_on_cpu  # noqa: F401

        PartialState(backend="gloo")
        arguments += ["--accelerator_config", '{"use_configured_state": true}']
    else:
        arguments += ["--use_cpu", "true"]
    trainer.DEFAULT_CALLBACKS.append(TellEngine)
    if "DIE_WRITING_CHECKPOINT" in os.environ:
        save_rng_state = trainer.Trainer._save_rng_state
        trainer.Trainer._save_rng_state = die_before_the_last_files
    sys.argv = [script, *arguments]
    sys.path[0] = os.path.dirname(script)
    runpy.run_path(script, run_name="__main__")
