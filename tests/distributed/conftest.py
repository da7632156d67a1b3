import json
import math
import select
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from paths import ACCELERATE_CONFIGS as CONFIGS

SERVER = Path(__file__).with_name("rank_server.py")
# As transformers names them, and as it once did.
KEY_BIASES = ("k_proj.bias", "attention.key.bias")
SECONDS_TO_IMPORT = 300
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
        self.count = 0

    def ask(self, timeout, request=None):
        if request is not None:
            print(json.dumps(request), file=self.server.stdin, flush=True)
        ready, _, _ = select.select([self.server.stdout], [], [], timeout)
        answer = self.server.stdout.readline() if ready else ""
        if not answer:
            pytest.fail(f"rank_server.py did not answer within {timeout} s, or ended with {self.server.poll()}")
        return json.loads(answer)

    def run(self, task, world_size=2, *, env=None, exit_codes=None, timeout=SECONDS_A_RUN, **spec):
        """Run `task` in `world_size` ranks, which must end with `exit_codes` (None: 0)."""
        request = {"task": task, "world_size": world_size, "env": env or {}, "timeout": timeout, "spec": spec}
        key = json.dumps([request, exit_codes], sort_keys=True)
        if key not in self.runs:
            self.count += 1
            folder = self.folder / f"run{self.count}"
            folder.mkdir()
            codes = self.ask(timeout + 30, {**request, "folder": str(folder)})
            logs = [(folder / f"rank{rank}.log").read_text() for rank in range(world_size)]
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
def ranks(tmp_path_factory):
    """Groups of real processes that train over gloo."""
    if find_spec("deepspeed") is None:  # importing it here would take seconds
        pytest.skip("needs deepspeed")
    server = subprocess.Popen(
        [sys.executable, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        ranks = Ranks(server, tmp_path_factory.mktemp("ranks"))
        assert ranks.ask(SECONDS_TO_IMPORT) == "ready"
        yield ranks
    finally:
        server.stdin.close()
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()
