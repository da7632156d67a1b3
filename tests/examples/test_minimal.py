"""The two short examples, run as a user runs them."""

import re

import pytest
from paths import EXAMPLES

TRAINER, LOOP = EXAMPLES / "minimal_trainer.py", EXAMPLES / "minimal_accelerate.py"


@pytest.fixture
def run(forks, tmp_path):
    """The output of a script in one process, or in two."""

    def run(script, *arguments, processes=1):
        if processes == 1:
            ranks = [forks.run(script, *arguments, cwd=tmp_path)]
        else:
            ranks = forks.run_ranks(processes, script, *arguments, cwd=tmp_path)
        output = "".join(rank.output for rank in ranks)
        assert [rank.status for rank in ranks] == [0] * processes, output
        return output

    return run


@pytest.mark.parametrize("script", [TRAINER, LOOP], ids=lambda script: script.name)
def test_it_is_short_enough_to_be_read_at_once(script):
    assert len(script.read_text().splitlines()) <= 45


def test_minimal_trainer_learns_and_anneals_p_to_2(run):
    # 1,024 sequences in batches of 32: 96 steps, of which each 24th is logged.
    arguments = ["--optim", "lpsgdm", "--use_cpu", "--disable_tqdm", "true"]
    output = run(TRAINER, *arguments, "--output_dir", "out")
    first, *_ = (float(loss) for loss in re.findall(r"{'loss': '?([\d.]+)", output))
    *_, last = re.findall(r"'eval_loss': '?([\d.]+)", output)
    assert float(last) < 0.3 * first
    p = [float(value) for value in re.findall(r"'p': '?([\d.]+)", output)]
    assert len(p) == 4
    assert p == sorted(p, reverse=True)
    assert p[0] < 20
    assert p[-1] == pytest.approx(2, abs=1e-3)


@pytest.mark.parametrize("processes", [1, 2])
def test_minimal_accelerate_learns_and_anneals_p_to_2(processes, run):
    output = run(LOOP, processes=processes)
    lines = re.findall(r"^epoch (\d+): loss ([\d.]+), p ([\d.]+)$", output, re.MULTILINE)
    # Two trainings of one process each would print every line twice.
    assert [int(epoch) for epoch, _, _ in lines] == list(range(1, 11))
    losses, p = [[float(line[place]) for line in lines] for place in (1, 2)]
    assert losses[-1] < 0.1 * losses[0]
    assert p == sorted(p, reverse=True)
    assert (p[0], p[-1]) == (20, 2)
