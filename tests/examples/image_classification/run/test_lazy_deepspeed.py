"""Where DeepSpeed is installed and not asked for, the scripts neither import it nor show its messages."""

import re
from importlib.util import find_spec

import accelerate.utils.other
import pytest
import torch
from launch import write
from paths import LOOP_SCRIPT, ROOT, TRAINER_SCRIPT
from run.settings import import_deepspeed_only_where_used
from snippets import demo_command, words_of

pytestmark = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")

TELL = """
import os, runpy, sys
try:
    del sys.argv[0]
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("imported", "deepspeed" in sys.modules)
"""


def demo_arguments():
    return words_of(demo_command((ROOT / "Makefile").read_text()))[2:]


@pytest.mark.parametrize("script", [TRAINER_SCRIPT, LOOP_SCRIPT], ids=["trainer", "loop"])
def test_a_run_without_deepspeed_does_not_import_it(forks, tmp_path, script):
    if script == TRAINER_SCRIPT:
        arguments = [*demo_arguments(), "--max_steps", "1", "--use_cpu"]
    else:
        arguments = ["--cpu", "--max_train_steps", "1"]
    write(tmp_path / "tell.py", TELL)
    run = forks.run(tmp_path / "tell.py", script, *arguments, cwd=tmp_path)
    assert run.status == 0, run.output
    *lines, imported = run.output.splitlines()
    assert any(line.startswith("accuracy = ") for line in lines)
    assert not any("deepspeed" in line.lower() or "real_accelerator" in line for line in lines), lines
    assert imported == "imported False"
    if script == TRAINER_SCRIPT:
        assert re.match(r"[\d,]+ images to train and [\d,]+ images to evaluate in 10 classes; ", lines[0])


class Engine(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


def test_an_engine_of_deepspeed_is_still_unwrapped_where_deepspeed_is_in_use(monkeypatch):
    monkeypatch.setattr(
        accelerate.utils.other, "is_deepspeed_available", accelerate.utils.other.is_deepspeed_available
    )
    import_deepspeed_only_where_used()
    import deepspeed

    monkeypatch.setattr(deepspeed, "DeepSpeedEngine", Engine)
    model = torch.nn.Linear(1, 1)
    assert accelerate.utils.other.extract_model_from_parallel(Engine(model)) is model
