"""The study's runner and report as commands, and its tasks in short."""

import sys
from dataclasses import replace

import pytest
import run_study
import study_report
import yaml
from study import data, tasks


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a study with one worker and the flags given; its cells are written to the folder `out`."""

    def run(study, *flags):
        file = tmp_path / "small.yaml"
        file.write_text(yaml.safe_dump(study))
        argv = ["run_study.py", str(file), "--output_dir", str(tmp_path / "out"), "--workers", "1", *flags]
        monkeypatch.setattr(sys, "argv", argv)
        run_study.main()

    return run


@pytest.fixture
def report(monkeypatch, tmp_path):
    """Reports on the cells of `run`, and returns the text."""

    def report(*flags):
        out = tmp_path / "out"
        monkeypatch.setattr(sys, "argv", ["study_report.py", str(out), *flags])
        study_report.main()
        return (out / "results.md").read_text()

    return report


@pytest.fixture
def few_steps(monkeypatch, tmp_path):
    """The character model on a text of 4,000 characters, for four steps."""
    (tmp_path / "tinyshakespeare.txt").write_text("to be or not to be. " * 200)
    task = tasks.TASKS["shakespeare"]
    short = " --max_steps 4 --warmup_steps 1 --per_device_train_batch_size 2 --logging_steps 1 --eval_steps 2"
    monkeypatch.setitem(tasks.TASKS, "shakespeare", replace(task, flags=task.flags + short))
    monkeypatch.setitem(data.PLACES, "texts", str(tmp_path))


@pytest.fixture
def short(monkeypatch):
    """The digits, for a single epoch of 100 images."""
    whole = data.digit_patches()
    train, held_out = ((inputs[:100], labels[:100]) for inputs, labels in (whole.train, whole.held_out))
    images = data.Data(train, held_out, kept_back=20)
    task = tasks.Task("digits, in short", lambda: images, tasks.TASKS["digits_vit"].model, 1, batch_size=10)
    monkeypatch.setitem(tasks.TASKS, "digits_vit", task)
