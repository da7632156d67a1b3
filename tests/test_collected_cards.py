"""The cards in model_cards/: as their runs wrote them, and all listed."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

CARDS = Path(__file__).parents[1] / "model_cards"
COLLECTED = sorted(path.parent for path in CARDS.glob("*/README.md"))


@pytest.mark.parametrize("folder", COLLECTED, ids=lambda folder: folder.name)
def test_numbers_of_a_card_are_those_of_its_run(folder):
    card = ModelCard.load(folder / "README.md")
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    evaluations = [entry for entry in history if "eval_loss" in entry]
    shown = {f"eval_{result.metric_type}": result.metric_value for result in card.data.eval_results}
    assert shown == {name: evaluations[-1][name] for name in ("eval_accuracy", "eval_loss") if name in evaluations[-1]}
    table = [line.strip("| ").split(" | ") for line in card.text.splitlines() if line.startswith("| ")]
    head = next(index for index, row in enumerate(table) if row[0] == "epoch")
    columns = dict(zip(table[head], range(len(table[head])), strict=True))
    rows = [row for row in table[head + 2 :] if len(row) == len(columns)]
    by_step = {entry["step"]: entry for entry in reversed(evaluations)}  # the first of a step, during the training
    assert 1 < len(rows) <= 40
    for row in rows:
        entry = by_step[int(row[columns["step"]])]
        for heading, name in {"accuracy": "eval_accuracy", "evaluation loss": "eval_loss"}.items():
            assert (heading in columns) == (name in shown)
            if heading in columns:
                assert math.isclose(float(row[columns[heading]]), entry[name], abs_tol=5.1e-5)
    assert (folder / "training_curves.png").read_bytes().startswith(b"\x89PNG")
    assert "](training_curves.png)" in card.text


def test_index_lists_every_card_and_is_as_generated(tmp_path):
    copy = tmp_path / "cards"
    shutil.copytree(CARDS, copy)
    run = tmp_path / "some-run"
    run.mkdir()
    (run / "README.md").write_text("---\ntags: [image-classification, vision, vit, sgd, hf_lpsgd]\n---\n# some-run\n")
    (run / "training_curves.png").touch()
    command = [sys.executable, str(CARDS / "collect.py"), "--to", str(copy)]
    result = subprocess.run([*command, str(run)], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.strip() == f"collect.py: error: {run} is no finished run: it has no trainer_state.json"

    subprocess.run(command, check=True)
    if COLLECTED:
        assert (copy / "README.md").read_text() == (CARDS / "README.md").read_text()
    (run / "trainer_state.json").write_text("{}")
    subprocess.run([*command, str(run)], check=True)
    listed = (copy / "README.md").read_text()
    assert "| [some-run](some-run/README.md) | not evaluated | vit | `sgd` |  |" in listed
    assert all(f"| [{folder.name}]({folder.name}/README.md) |" in listed for folder in COLLECTED)
