import json
import math
import os
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from launch import Forks
from paths import ACCELERATE_CONFIGS as CONFIGS

TASKS = Path(__file__).with_name("rank_tasks.py")
# Nothing here compiles.
ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
}
# As transformers names them, and as it once did.
KEY_BIASES = ("k_proj.bias", "attention.key.bias")
SECONDS_A_RUN = 150


class Run(NamedTuple):
    """What a group of ranks left.

    Attributes:
        folder: where it ran.
        exit_codes: one for each rank; negative where a signal ended it.
        facts: the `result.json` of the first rank.
        weights: its `weights.pt`.
        logs: the output of each rank.
    """

    folder: Path
    exit_codes: list[int]
    facts: dict
    weights: dict
    logs: list[str]

    def logged(self, key):
        return [entry.get(key) for entry in self.facts["history"] if "learning_rate" in entry]

    def names(self):
        # The gradient of key biases is zero but for rounding, which a sign-like step makes as large as any other.
        names = [name for name in self.weights if not name.endswith(KEY_BIASES)]
        assert len(names) == len(self.weights) - 2 > 0
        return names

    def difference(self, other):
        """The largest relative difference of a weight tensor, but for the attention's key biases."""
        pairs = [(self.weights[name], other.weights[name]) for name in self.names()]
        return max(float((mine - others).norm() / mine.norm()) for mine, others in pairs)

    def change_difference(self, other, start):
        """The difference of all weights together, relative to how far they came from `start`."""

        def norm(a, b):
            return math.sqrt(sum(float((a[name] - b[name]).square().sum()) for name in self.names()))

        return norm(self.weights, other.weights) / norm(self.weights, start)

    def is_bit_for_bit(self, other):
        assert self.weights
        return all(torch.equal(weight, other.weights[name]) for name, weight in self.weights.items())


class Ranks:
    """Runs functions of rank_tasks.py in groups of ranks, each run once however many tests look at it."""

    def __init__(self, server, folder):
        self.server = server
        self.folder = folder
        self.runs = {}

    def run(self, task, world_size=2, *, env=None, exit_codes=None, **spec):
        """Run `task` in `world_size` ranks, which must end with `exit_codes` (None: 0)."""
        key = json.dumps([task, world_size, env, exit_codes, spec], sort_keys=True)
        if key not in self.runs:
            folder = self.folder / f"run{len(self.runs)}"
            folder.mkdir()
            (folder / "spec.json").write_text(json.dumps(spec))
            options = {"env": env, "timeout": SECONDS_A_RUN}
            if world_size == 1:
                ranks = [self.server.run(TASKS, task, folder, **options)]
            else:
                ranks = self.server.run_ranks(world_size, TASKS, task, folder, **options)
            codes, logs = [rank.status for rank in ranks], [rank.output for rank in ranks]
            assert codes == (exit_codes or [0] * world_size), "\n".join(log[-4000:] for log in logs)
            result, weights = folder / "result.json", folder / "weights.pt"
            facts = json.loads(result.read_text()) if result.exists() else {}
            tensors = torch.load(weights) if weights.exists() else {}
            tensors = {name: tensor.detach() for name, tensor in tensors.items()}
            self.runs[key] = Run(folder, codes, facts, tensors, logs)
        return self.runs[key]

    def launch_config(self, name):
        """What `accelerate launch --config_file examples/accelerate_configs/NAME.yaml` would do."""
        return self.run("read_launch_config", 1, config=str(CONFIGS / f"{name}.yaml")).facts

    def train(self, engine, *, deepspeed=None, **spec):
        """Train with two ranks, or one for the engine "one"; other engines are names of launch configs.

        Args:
            deepspeed: a DeepSpeed config to use instead of the one of the launch config.
            spec: as in `rank_tasks.train`; other keywords as in `run`.
        """
        env = {}
        if deepspeed is not None:
            env["ACCELERATE_USE_DEEPSPEED"] = "true"
            spec["arguments"] = {**spec.get("arguments", {}), "deepspeed": deepspeed}
        elif engine.startswith("deepspeed"):
            env = self.launch_config(engine)["environment"]
        run = self.run("train", 1 if engine == "one" else 2, env=env, **spec)
        if run.facts:
            assert_engine(engine, run.facts)
        return run


def assert_engine(engine, facts):
    expected = {"one": "ViTForImageClassification", "multi_gpu": "DistributedDataParallel"}.get(
        engine, "DeepSpeedEngine"
    )
    assert (facts["engine"], facts["world_size"]) == (expected, 1 if engine == "one" else 2)
    assert facts["optimizer"] == "LPSGDM"
    if expected == "DeepSpeedEngine":
        assert f"zero{facts['zero_stage']}" in engine
        assert facts["offload"] == ("offload" in engine)


@pytest.fixture(scope="session")
def rank_server(tmp_path_factory):
    """Runs scripts in processes that have imported the Trainer and DeepSpeed before."""
    if find_spec("deepspeed") is None:  # importing it here would take seconds
        pytest.skip("needs deepspeed")
    folder, environment = tmp_path_factory.mktemp("rank_server"), {**os.environ, **ENVIRONMENT}
    server = Forks(folder, os.environ["FORK_SERVER"], environment, ["deepspeed_on_cpu"])
    yield server
    server.close()


@pytest.fixture(scope="session")
def ranks(rank_server, tmp_path_factory):
    """Groups of real processes that train over gloo."""
    return Ranks(rank_server, tmp_path_factory.mktemp("ranks"))
