"""The runner with transformers and the real package: a script that knows neither optimizer trains with one."""

import json
import os
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from launch import python, write

TRAIN = """
import json
import os
import sys

import torch
from transformers import HfArgumentParser, TrainingArguments


def main():
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()

    from transformers import Trainer, ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = ViTForImageClassification(ViTConfig(image_size=4, patch_size=2, num_labels=3, **sizes))
    data = [{"pixel_values": torch.randn(3, 4, 4), "labels": i % 3} for i in range(16)]
    trainer = Trainer(model=model, args=args, train_dataset=data)
    trainer.train()
    if trainer.is_world_process_zero():
        world_size = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        wrapper = type(trainer.model_wrapped).__name__
        result = {"log_history": trainer.state.log_history, "world_size": world_size, "wrapper": wrapper}
        with open(args.output_dir + ".json", "w") as file:
            json.dump(result, file)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        sys.stdout.flush()
        os._exit(0)  # as fork_server.py does


if __name__ == "__main__":
    main()
"""

# As the command lines of many tools do, it trains in a child.
TOOL = f"""#!{sys.executable}
import subprocess, sys
command, *arguments = sys.argv[1:]
sys.exit(subprocess.call([sys.executable, command + ".py", *arguments]))
"""
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
OPTIONS = shlex.split("""
--optim lpsgdm --optim_args p_max=20,p_schedule=cosine --learning_rate 0.01 --max_steps 4 --logging_steps 1
--per_device_train_batch_size 2 --use_cpu --save_strategy no --report_to none --disable_tqdm true
""")


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """The same script under the runner, and under the runner in two processes, both started at once."""
    folder = tmp_path_factory.mktemp("training")
    write(folder / "train.py", TRAIN)
    write(folder / "tool", TOOL)
    (folder / "tool").chmod(0o755)
    launches = {
        "runner": ["-m", "hf_lpsgd", "./tool", "train"],
        "torchrun": [*TORCHRUN, "-m", "hf_lpsgd", "train.py"],
    }
    env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore")
    with ThreadPoolExecutor() as pool:
        jobs = {
            name: pool.submit(
                python, folder, *launch, *OPTIONS, "--output_dir", str(folder / name), env=env, timeout=300
            )
            for name, launch in launches.items()
        }
    outcomes = {name: folder / f"{name}.json" for name in launches}
    return {
        name: (jobs[name].result(), json.loads(path.read_text()) if path.exists() else None)
        for name, path in outcomes.items()
    }


@pytest.mark.parametrize(("name", "world_size"), [("runner", 1), ("torchrun", 2)])
def test_script_that_only_knows_transformers_trains_with_p_falling_from_p_max_to_2(training, name, world_size):
    result, outcome = training[name]
    assert result.returncode == 0, result.stderr
    assert outcome["world_size"] == world_size
    assert (outcome["wrapper"] == "DistributedDataParallel") == (world_size > 1)
    p = [entry["p"] for entry in outcome["log_history"] if "learning_rate" in entry]
    assert len(p) == 4
    assert p == sorted(set(p), reverse=True)
    assert (p[0], p[-1]) == (20, pytest.approx(2))
