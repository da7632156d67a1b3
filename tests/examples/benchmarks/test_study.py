"""The study runner: which cells there are, that a cut-off run goes on, and what the report makes of them."""

import json
import sys

import pytest
import run_study
import study_report
import torch
import yaml
from study import data, language_model, tasks
from study.contenders import make_optimizer
from study.tested import Tested
from study.training import train

STUDY = {
    "tasks": ["digits_vit"],
    "seeds": [0, 1],
    "contenders": [
        {"optimizer": "AdamW", "rates": [1e-3]},
        {"optimizer": "LPSGDM", "vary": {"p_max": [3, 20]}, "options": {"grad_rms": "auto"}, "rates": [3e-4, 1e-3]},
        {"optimizer": "LPSGDM", "vary": {"p_max": [3]}, "rates": [1e-2], "not_on": ["digits_vit"]},
    ],
}


def few(examples, number):
    return examples[0][:number], examples[1][:number]


@pytest.fixture
def short(monkeypatch):
    """The digits, for a single epoch of 100 images."""
    whole = data.digit_patches()
    images = data.Data(few(whole.train, 100), few(whole.held_out, 100), kept_back=20)
    task = tasks.Task("digits, in short", lambda: images, tasks.TASKS["digits_vit"].model, 1, batch_size=10)
    monkeypatch.setitem(tasks.TASKS, "digits_vit", task)


def test_the_cells_are_all_combinations_seed_by_seed():
    cells = list(run_study.cells_of(STUDY))
    assert len(cells) == len({run_study.key_of(cell) for cell in cells}) == 2 * 5
    assert [cell["seed"] for cell in cells] == [0] * 5 + [1] * 5
    assert cells[1] == {
        "task": "digits_vit",
        "optimizer": "LPSGDM",
        "options": {"grad_rms": "auto", "p_max": 3},
        "rate": 3e-4,
        "seed": 0,
    }


@pytest.mark.parametrize("study", sorted((run_study.HERE / "studies").glob("*.yaml")), ids=lambda study: study.stem)
def test_the_studies_of_the_repository_name_tasks_and_optimizers_that_there_are(study):
    cells = list(run_study.cells_of(yaml.safe_load(study.read_text())))
    assert {cell["task"] for cell in cells} <= set(tasks.TASKS)
    for cell in {json.dumps([cell["optimizer"], cell["options"]]): cell for cell in cells}.values():
        of_the_loop = ("p_schedule", "p_granularity", "clip", "dtype")
        options = {name: value for name, value in cell["options"].items() if name not in of_the_loop}
        if cell["optimizer"] != "Lion":
            make_optimizer(torch.nn.Linear(2, 2), cell["optimizer"], cell["rate"], options)


def test_a_run_that_was_cut_off_goes_on_and_the_report_tells_the_rates(short, tmp_path, monkeypatch, capsys):
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(STUDY))
    out = tmp_path / "out"
    flags = ["run_study.py", str(file), "--output_dir", str(out), "--workers", "1"]
    monkeypatch.setattr(sys, "argv", flags)
    run_study.main()
    lines = (out / "cells.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 10
    run = json.loads(lines[0])["run"]
    assert {"command", "commit", "versions", "device"} <= run.keys()
    (out / "cells.jsonl").write_text("\n".join(lines[:7]) + '\n{"task": "digi')  # killed while it wrote
    run_study.main()
    cells = run_study.read_cells(out / "cells.jsonl")
    assert sorted(map(run_study.key_of, cells)) == sorted(map(run_study.key_of, run_study.cells_of(STUDY)))
    run_study.main()
    assert "all cells are in" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["study_report.py", str(out)])
    study_report.main()
    text = (out / "results.md").read_text()
    assert "| LPSGDM p_max=20, grad_rms=auto |" in text
    assert (out / "results.png").stat().st_size > 1000
    (out / "note.md").write_text("Made with a development version.\n")
    study_report.main()
    assert (out / "results.md").read_text() == text.replace("\n\n", "\n\nMade with a development version.\n\n", 1)


def test_one_rate_for_all_is_the_one_at_which_the_worst_loses_least():
    family = [{1e-3: [0.9, 0.8], 1e-2: [0.8, 0.8]}, {1e-3: [0.5], 1e-2: [0.7]}]
    assert study_report.common_rate(family) == (1e-2, pytest.approx(0.05))


def test_a_seed_that_was_cut_off_is_not_counted():
    cells = [{"task": task, "seed": seed, "rate": rate} for task in "ab" for seed in (0, 1) for rate in (1, 2)]
    assert study_report.of_whole_seeds(cells) == cells
    assert study_report.of_whole_seeds(cells[:-1]) == cells[:-2]


def test_a_cell_is_the_same_when_it_is_run_again(short):
    cell = next(cell for cell in run_study.cells_of(STUDY) if cell["optimizer"] == "LPSGDM")
    first, again = train(cell), train(cell)
    assert [first[key] for key in ("accuracy", "loss")] == [again[key] for key in ("accuracy", "loss")]


def test_an_unknown_task_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump({**STUDY, "tasks": ["digits"]}))
    monkeypatch.setattr(sys, "argv", ["run_study.py", str(file)])
    with pytest.raises(SystemExit):
        run_study.main()
    assert "unknown task 'digits'; the tasks are digits_vit" in capsys.readouterr().err


TESTED = {
    "tasks": ["digits_vit"],
    "seeds": [0],
    "test": {"seeds": [0, 1]},
    "contenders": [
        {"optimizer": "AdamW", "rates": [1e-4, 1e-2], "first_rate": 1e-3},
        {"optimizer": "LPSGDM", "rates": [1e-5, 3e-3], "first_rate": 3e-3, "also_at_best_of": "AdamW"},
    ],
}


def finished(task="digits_vit", **accuracies):
    rates = {"AdamW": [1e-4, 1e-2], "LPSGDM": [1e-5, 3e-3]}
    return [
        {**cell, "accuracy": accuracies[cell["optimizer"]][rates[cell["optimizer"]].index(cell["rate"])]}
        for cell in run_study.cells_of(TESTED)
    ]


def test_a_contender_is_tested_at_its_best_rate_at_the_first_one_and_at_the_best_of_another():
    chosen = finished(AdamW=[0.5, 0.7], LPSGDM=[0.8, 0.2])
    cells = list(run_study.test_cells_of(TESTED, chosen))
    assert {cell["split"] for cell in chosen} == {"validation"}
    assert {cell["split"] for cell in cells} == {"test"}
    for seed in (0, 1):
        rates = [(cell["optimizer"], cell["rate"]) for cell in cells if cell["seed"] == seed]
        assert rates == [("AdamW", 1e-3), ("AdamW", 1e-2), ("LPSGDM", 1e-5), ("LPSGDM", 3e-3), ("LPSGDM", 1e-2)]


def test_a_study_with_a_test_chooses_first_and_keeps_a_curve_of_each_test(short, tmp_path, monkeypatch, capsys):
    file = tmp_path / "tested.yaml"
    file.write_text(yaml.safe_dump(TESTED))
    monkeypatch.setattr(sys, "argv", ["run_study.py", str(file), "--output_dir", str(tmp_path), "--workers", "1"])
    run_study.main()
    cells = run_study.read_cells(tmp_path / "cells.jsonl")
    tested = [cell for cell in cells if cell["split"] == "test"]
    assert len(cells) - len(tested) == 4
    assert len(tested) == len(list(run_study.test_cells_of(TESTED, cells)))
    for cell in tested:
        assert [point["step"] for point in cell["curve"]] == list(range(1, 9))
        assert ("p" in cell["curve"][0]) == (cell["optimizer"] == "LPSGDM")
        assert all({"loss", "accuracy", "lr"} <= point.keys() for point in cell["curve"])
    run_study.main()
    assert "all cells are in" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["study_report.py", str(tmp_path)])
    study_report.main()
    text = (tmp_path / "results.md").read_text()
    assert "At the best learning rate" in text
    assert "The rates: AdamW: 0.001, LPSGDM: 0.003." in text
    assert text.count("| LPSGDM |") == 4
    assert (tmp_path / "results.png").stat().st_size > 1000


def test_the_report_of_a_test_tells_what_was_chosen_and_what_came_of_it():
    def tested(optimizer, rate, accuracy, seed, reached):
        curve = [{"step": 5, "accuracy": reached, "lr": 1.0}, {"step": 10, "accuracy": 0.9, "lr": 0.0}]
        names = {"task": "digits_vit", "optimizer": optimizer, "options": {}, "rate": rate, "seed": seed}
        return {**names, "split": "test", "accuracy": accuracy, "curve": curve}

    cells = finished(AdamW=[0.5, 0.7], LPSGDM=[0.8, 0.2]) + [
        tested("AdamW", 1e-2, 0.6, 0, 0.1),
        tested("AdamW", 1e-2, 0.8, 1, 0.1),
        tested("AdamW", 1e-3, 0.3, 0, 0.1),
        tested("LPSGDM", 1e-5, 0.5, 0, 0.9),
        tested("LPSGDM", 1e-2, 0.4, 0, 0.1),
        tested("LPSGDM", 3e-3, 0.2, 0, 0.1),
    ]
    report = Tested(cells, {"AdamW": 1e-3, "LPSGDM": 3e-3})
    assert report.accuracies("digits_vit", "AdamW", "best") == [0.6, 0.8]
    assert report.accuracies("digits_vit", "AdamW", "first") == [0.3]
    assert [report.accuracies("digits_vit", "LPSGDM", which) for which in ("best", "first", "AdamW")] == [
        [0.5],
        [0.2],
        [0.4],
    ]
    assert [report.steps_to("digits_vit", title) for title in ("AdamW", "LPSGDM")] == [1.0, 0.5]
    progress, middle, deviation = report.curve("digits_vit", "AdamW", "accuracy")
    assert [progress, middle, deviation] == [[0.5, 1.0], [0.1, 0.9], [0.0, 0.0]]


def test_test_data_are_no_part_of_what_is_trained_on_or_chosen_by():
    for whole in (data.digit_images(), data.text()):
        parts = whole.with_test()
        assert len(parts.train[0]) + len(parts.test[0]) == len(whole.train[0])
        assert len(parts.test[0]) == whole.kept_back > 0
        torch.testing.assert_close(torch.cat([parts.train[0], parts.test[0]]), whole.train[0], rtol=0, atol=0)
        assert parts.with_test() is parts


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("AdamW", {}),
        ("Lion", {}),
        ("SGD", {}),
        ("LPSGD", {"grad_rms": "auto"}),
        ("LPSGDM", {"p_max": 6, "p_schedule": "linear", "clip": 0, "weight_decay": 0.01}),
    ],
)
def test_a_trainer_script_trains_with_the_optimizer_that_the_cell_names(optimizer, options, monkeypatch):
    whole = data.text()
    short = data.Data(few(whole.train, 96), few(whole.held_out, 20), kept_back=32)
    monkeypatch.setattr(language_model, "text", lambda: short)
    used = []
    real = language_model.Trainer.train

    def train_and_look(trainer, *args, **kwargs):
        result = real(trainer, *args, **kwargs)
        base = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        used.append((type(base).__name__, base.param_groups[0], trainer.args.max_grad_norm))
        return result

    monkeypatch.setattr(language_model.Trainer, "train", train_and_look)
    cell = {
        "task": "text_trainer",
        "optimizer": optimizer,
        "options": options,
        "rate": 1e-3,
        "seed": 0,
        "split": "test",
    }
    result = train(cell)
    ((name, group, clip),) = used
    assert name == optimizer
    assert group["initial_lr"] == 1e-3
    assert clip == options.get("clip", 1.0)
    if optimizer == "LPSGDM":
        assert [group["p_max"], group["weight_decay"]] == [6, 0.01]
    if optimizer == "SGD":
        assert group["momentum"] == 0.9
    assert 0 < result["accuracy"] < 1
    assert [point["step"] for point in result["curve"]][-1] == 12
    assert ("p" in result["curve"][0]) == optimizer.startswith("LP")
