"""The two short examples, run as a user runs them."""

import os
import re
import subprocess
import sys

import pytest
from launch import torchrun
from paths import EXAMPLES

TRAINER, LOOP = EXAMPLES / "minimal_trainer.py", EXAMPLES / "minimal_accelerate.py"


def run_alone(script, *arguments, folder):
    """The output of `script` in one process."""
    done = subprocess.run(
        [sys.executable, script, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def run_twice(script, *arguments, folder):
    """The output of `script` in two processes."""
    done = torchrun(2, script, *arguments, cwd=folder)
    assert done.returncode == 0, done.output
    return done.output


@pytest.mark.parametrize("script", [TRAINER, LOOP], ids=lambda script: script.name)
def test_it_is_short_enough_to_be_read_at_once(script):
    assert len(script.read_text().splitlines()) <= 45


def test_minimal_trainer_learns_and_anneals_p_to_2(tmp_path):
    # 1,024 sequences in batches of 32: 96 steps, of which each 24th is logged.
    arguments = ["--optim", "lpsgdm", "--use_cpu", "--disable_tqdm", "true"]
    output = run_alone(TRAINER, *arguments, "--output_dir", "out", folder=tmp_path)
    first, *_ = (float(loss) for loss in re.findall(r"{'loss': '?([\d.]+)", output))
    *_, last = re.findall(r"'eval_loss': '?([\d.]+)", output)
    assert float(last) < 0.3 * first
    p = [float(value) for value in re.findall(r"'p': '?([\d.]+)", output)]
    assert len(p) == 4
    assert p == sorted(p, reverse=True)
    assert p[0] < 20
    assert p[-1] == pytest.approx(2, abs=1e-3)


@pytest.mark.parametrize("run", [run_alone, run_twice])
def test_minimal_accelerate_learns_and_anneals_p_to_2(run, tmp_path):
    output = run(LOOP, folder=tmp_path)
    lines = re.findall(r"^epoch (\d+): loss ([\d.]+), p ([\d.]+)$", output, re.MULTILINE)
    # Two trainings of one process each would print every line twice.
    assert [int(epoch) for epoch, _, _ in lines] == list(range(1, 11))
    losses, p = [[float(line[place]) for line in lines] for place in (1, 2)]
    assert losses[-1] < 0.1 * losses[0]
    assert p == sorted(p, reverse=True)
    assert (p[0], p[-1]) == (20, 2)
