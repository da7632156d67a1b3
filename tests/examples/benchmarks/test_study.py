"""The study runner: which cells there are, that a cut-off run goes on, and what the report makes of them."""

import importlib
import json
import math
import sys
from dataclasses import replace

import pytest
import run_study
import study_report
import torch
import yaml
from study import data, tasks, trainer_cell
from study.contenders import make_optimizer
from study.tested import Tested, tables_of_tested
from study.training import train
from study.words import known_as
from transformers import (
    HfArgumentParser,
    TrainingArguments,
)

from hf_lpsgd.trainer.optim_args import validate_optim_args

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
def test_the_studies_of_the_repository_name_tasks_and_optimizers_that_there_are(study, tmp_path):
    cells = list(run_study.cells_of(yaml.safe_load(study.read_text())))
    assert {cell["task"] for cell in cells} <= set(tasks.TASKS)
    for cell in {json.dumps([cell["task"], cell["optimizer"], cell["options"]]): cell for cell in cells}.values():
        task = tasks.TASKS[cell["task"]]
        if task.script:
            script = importlib.import_module(f"study.{task.script}")
            flags, _ = trainer_cell.flags_of(cell, task, str(tmp_path))
            _, args = HfArgumentParser((script.Arguments, TrainingArguments)).parse_args_into_dataclasses(flags)
            validate_optim_args(args)
            continue
        of_the_loop = ("p_schedule", "p_granularity", "batch_size", "clip", "layerwise", "dtype")
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
    assert (out / "p_max.png").stat().st_size > 1000
    (out / "note.md").write_text("Made with a development version.\n")
    study_report.main()
    assert (out / "results.md").read_text() == text.replace("\n\n", "\n\nMade with a development version.\n\n", 1)
    first, *others = STUDY["contenders"]
    (out / "titled.yaml").write_text(
        yaml.safe_dump({**STUDY, "contenders": [{**first, "title": "as titled"}, *others]})
    )
    monkeypatch.setattr(sys, "argv", ["study_report.py", str(out), "--study", str(out / "titled.yaml")])
    study_report.main()
    assert "| as titled |" in (out / "results.md").read_text()


def test_one_rate_for_all_is_the_one_at_which_the_worst_loses_least():
    family = [{1e-3: [0.9, 0.8], 1e-2: [0.8, 0.8]}, {1e-3: [0.5], 1e-2: [0.7]}]
    assert study_report.common_rate("digits_vit", family) == (1e-2, pytest.approx(0.05))


def test_a_seed_that_was_cut_off_is_not_counted():
    cells = [{"task": task, "seed": seed, "rate": rate} for task in "ab" for seed in (0, 1) for rate in (1, 2)]
    assert study_report.of_whole_seeds(cells) == cells
    assert study_report.of_whole_seeds(cells[:-1]) == cells[:-2]


def test_a_contender_with_a_factor_trains_at_as_much_more_and_is_shown_at_the_rate_it_names():
    contenders = [
        {"optimizer": "LPSGDM", "title": "half", "rates": [1e-3, 3e-3]},
        {"optimizer": "LPSGDM", "title": "three quarters", "rates": [1e-3, 3e-3], "rate_factor": 1.5},
    ]
    study = {**STUDY, "seeds": [0], "contenders": contenders}
    cells = list(run_study.cells_of(study))
    assert [cell["rate"] for cell in cells] == [1e-3, 3e-3, 1.5e-3, 4.5e-3]
    assert [known_as(cell, study) for cell in cells] == [
        ("half", 1e-3),
        ("half", 3e-3),
        ("three quarters", 1e-3),
        ("three quarters", 3e-3),
    ]
    assert known_as({**cells[0], "rate": 0.1}, study) == ("half", 0.1)
    assert known_as({**cells[0], "optimizer": "AdamW"}, study) == ("AdamW", 1e-3)


@pytest.mark.parametrize(
    ("task", "values", "row"),
    [
        (
            "digits_vit",
            {"AdamW": [0.5, 0.8, 0.7, 0.6], "LPSGDM": [0.4, 0.81, 0.75, 0.6]},
            "-10.0 | +1.0 | +2.5 | -1.0",
        ),
        (
            "shakespeare",
            {"AdamW": [2.0, 1.5, 1.7, 1.8], "LPSGDM": [2.1, 1.5, 1.6, 1.7]},
            "+0.100 | +0.000 | -0.100 | -0.025",
        ),
        ("shakespeare", {"AdamW": [2.0, 1.5, 1.7, 1.8], "LPSGDM": [2.1, 1.5, 1.6]}, "+0.100 | +0.000 |  | "),
        ("shakespeare", {"AdamW": [2.0, 1.5, 1.7, 1.8], "LPSGDM": [2.1, math.inf, 1.6, 1.7]}, "+0.100 |  | -0.100 | "),
    ],
)
def test_the_report_tells_what_each_gains_beside_adamw_below_at_and_above_its_best_rate(task, values, row):
    found = {
        task: {
            title: dict(zip((1e-4, 1e-3, 1e-2, 3e-2), ([v] for v in of), strict=False)) for title, of in values.items()
        }
    }
    assert study_report.beside_adamw(found)[-1] == f"| LPSGDM | {row} |"
    del found[task]["AdamW"]
    assert study_report.beside_adamw(found) == []


def test_a_cell_is_the_same_when_it_is_run_again(short):
    cell = next(cell for cell in run_study.cells_of(STUDY) if cell["optimizer"] == "LPSGDM")
    first, again = train(cell), train(cell)
    assert [first[key] for key in ("accuracy", "loss")] == [again[key] for key in ("accuracy", "loss")]


def test_a_cell_trains_in_batches_of_its_size_layerwise_as_otherwise(short):
    cell = {"task": "digits_vit", "optimizer": "LPSGD", "options": {"clip": 0}, "rate": 1e-3, "seed": 0}
    watched = []

    def watch(step, number, model, optimizer):
        watched.append((step, number, optimizer.backward_step is not None))

    found = [
        train({**cell, "options": {**cell["options"], **more}}, watch=watch)["loss"]
        for more in ({}, {"layerwise": True}, {"batch_size": 25})
    ]
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    expected = [(10, False), (10, True), (4, False)]
    assert watched == [(step, number, hooked) for number, hooked in expected for step in range(number)]
    with pytest.raises(TypeError, match="AdamW"):
        train({**cell, "optimizer": "AdamW", "options": {"layerwise": True}})


@pytest.mark.parametrize(
    ("tasks", "contender", "message"),
    [
        (["digits"], "AdamW", "unknown task 'digits'; the tasks are digits_vit"),
        (["digits_vit"], "Adam", "unknown contender 'Adam'; this study has AdamW, LPSGDM"),
    ],
)
def test_an_unknown_name_is_told_in_one_line(tasks, contender, message, tmp_path, monkeypatch, capsys):
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump({**TESTED, "tasks": tasks}))
    monkeypatch.setattr(sys, "argv", ["run_study.py", str(file), "--contenders", contender])
    with pytest.raises(SystemExit):
        run_study.main()
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "run"), [([], "AdamW LPSGDM Lion"), (["LPSGDM"], "AdamW LPSGDM"), (["Lion"], "Lion")]
)
def test_a_contender_is_run_with_the_one_at_whose_best_rate_it_is_tested(asked, run, tmp_path, monkeypatch):
    file, cells = tmp_path / "three.yaml", []
    lion = {"optimizer": "Lion", "rates": [1e-4]}
    file.write_text(yaml.safe_dump({**TESTED, "contenders": [*TESTED["contenders"], lion]}))
    monkeypatch.setattr(run_study, "_run_all", lambda found, *_: cells.extend(found))
    flags = ["--output_dir", str(tmp_path), "--no_test", "--contenders", *asked]
    monkeypatch.setattr(sys, "argv", ["run_study.py", str(file), *flags])
    run_study.main()
    assert list(dict.fromkeys(cell["optimizer"] for cell in cells)) == run.split()


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
        {
            **cell,
            "title": cell["optimizer"],
            "accuracy": accuracies[cell["optimizer"]][rates[cell["optimizer"]].index(cell["rate"])],
        }
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
    assert "## digits_vit, on the test data" in text
    assert text.count("| LPSGDM |") == 2
    for name in ("rates", "curves"):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000


def test_the_report_of_a_test_tells_what_was_chosen_and_what_came_of_it():
    def tested(optimizer, rate, accuracy, seed, reached):
        curve = [{"step": 5, "accuracy": reached, "lr": 1.0}, {"step": 10, "accuracy": 0.9, "lr": 0.0}]
        names = {"task": "digits_vit", "optimizer": optimizer, "options": {}, "rate": rate, "seed": seed}
        return {**names, "title": optimizer, "split": "test", "accuracy": accuracy, "curve": curve}

    cells = finished(AdamW=[0.5, 0.7], LPSGDM=[0.8, 0.2]) + [
        tested("AdamW", 1e-2, 0.6, 0, 0.1),
        tested("AdamW", 1e-2, 0.8, 1, 0.1),
        tested("AdamW", 1e-3, 0.3, 0, 0.1),
        tested("LPSGDM", 1e-5, 0.5, 0, 0.9),
        tested("LPSGDM", 1e-2, 0.4, 0, 0.1),
        tested("LPSGDM", 3e-3, 0.2, 0, 0.1),
    ]
    report = Tested(cells, {"AdamW": 1e-3, "LPSGDM": 3e-3})
    assert report.values("digits_vit", "AdamW", "best") == [0.6, 0.8]
    assert report.values("digits_vit", "AdamW", "first") == [0.3]
    assert [report.values("digits_vit", "LPSGDM", which) for which in ("best", "first", "AdamW")] == [
        [0.5],
        [0.2],
        [0.4],
    ]
    assert [report.steps_to("digits_vit", title) for title in ("AdamW", "LPSGDM")] == [1.0, 0.5]
    rows = [
        "| AdamW |  | 0.01 | 0.700 ± 0.141 | 0.700 ± 0.141 | 0.300 (0.001) | 1.00 |  |",
        "| LPSGDM |  | 1e-05 | 0.500 | 0.400 | 0.200 (0.003) | 0.50 |  |",
    ]
    assert set(rows) < set(tables_of_tested(report))
    three = ("digits_vit", "digits_resnet", "cifar_vit")
    several = Tested([{**cell, "task": task} for task in three for cell in cells], {"AdamW": 1e-3, "LPSGDM": 3e-3})
    lines = tables_of_tested(several)
    assert f"| LPSGDM | {' | '.join(['0.500 (1e-05)'] * 3)} |" in lines
    assert "The rates: AdamW: 0.001, LPSGDM: 0.003." in lines
    assert f"| LPSGDM | {' | '.join(['0.50'] * 3)} |" in lines
    of_tests = report.trainings("digits_vit", ["AdamW", "LPSGDM"])
    steps, middle, deviation = report.curve(of_tests["AdamW"], "accuracy")
    assert [steps, middle, deviation] == [[5, 10], [0.1, 0.9], [0.0, 0.0]]


def test_times_of_the_report_are_of_one_device_and_of_the_least_disturbed_training():
    cells = finished(AdamW=[0.5, 0.7], LPSGDM=[0.8, 0.2])
    assert [cell["title"] for cell in cells] == ["AdamW", "AdamW", "LPSGDM", "LPSGDM"]
    for cell, time in zip(cells, (9.0, 8.0, 6.0, 7.0), strict=True):
        cell |= {"device": "one", "own_ms_per_step": time}
    report = Tested([{**cells[0], "device": "other", "own_ms_per_step": 3.0}, *cells], {})
    assert report.times("digits_vit") == ("one", {"AdamW": 8.0, "LPSGDM": 6.0})
    assert Tested(finished(AdamW=[0.5, 0.7], LPSGDM=[0.8, 0.2]), {}).times("digits_vit") == ("", {})


def test_test_data_are_no_part_of_what_is_trained_on_or_chosen_by():
    for whole in (data.digit_images(), data.text()):
        parts = whole.with_test()
        assert len(parts.train[0]) + len(parts.test[0]) == len(whole.train[0])
        assert len(parts.test[0]) == whole.kept_back > 0
        torch.testing.assert_close(torch.cat([parts.train[0], parts.test[0]]), whole.train[0], rtol=0, atol=0)
        assert parts.with_test() is parts


def test_an_optimizer_is_chosen_and_tested_before_the_next_and_all_with_one_seed_before_the_next():
    done = []
    for _, cells_in in run_study.stages_of(TESTED):
        for cell in list(cells_in(done)):
            if run_study.key_of(cell) not in map(run_study.key_of, done):
                done.append({**cell, "accuracy": cell["rate"]})
    found = [(cell["optimizer"], cell["split"], cell["seed"]) for cell in done]
    assert list(dict.fromkeys(found)) == [
        ("AdamW", "validation", 0),
        ("AdamW", "test", 0),
        ("LPSGDM", "validation", 0),
        ("LPSGDM", "test", 0),
        ("AdamW", "test", 1),
        ("LPSGDM", "test", 1),
    ]


SCRIPTED = {
    "tasks": ["shakespeare"],
    "seeds": [0],
    "test": {"seeds": [0]},
    "contenders": [
        {"optimizer": "AdamW", "rates": [1e-3, 1e-5]},
        {
            "optimizer": "LPSGD",
            "title": "LPSGD, as small as can be",
            "options": {
                "grad_rms": "auto",
                "layerwise": True,
                "clip": 0,
                "dtype": "bfloat16",
                "rounding": "stochastic",
            },
            "rates": [1e-3],
            "also_at_best_of": "AdamW",
        },
    ],
}


def test_a_study_of_a_loss_chooses_the_lowest_and_reports_what_its_contenders_are_called(
    few_steps, tmp_path, monkeypatch
):
    file = tmp_path / "scripted.yaml"
    file.write_text(yaml.safe_dump(SCRIPTED))
    out = tmp_path / "out"
    flags = ["run_study.py", str(file), "--output_dir", str(out), "--workers", "1", "--texts", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*flags, "--rates", "1", "--no_test"])
    run_study.main()
    assert [cell["split"] for cell in run_study.read_cells(out / "cells.jsonl")] == ["validation"] * 2
    monkeypatch.setattr(sys, "argv", ["study_report.py", str(out)])
    study_report.main()  # before the tests the curves are those of the choice
    (out / "curves.png").rename(out / "curves_of_the_choice.png")
    monkeypatch.setattr(sys, "argv", flags)
    run_study.main()
    cells = run_study.read_cells(out / "cells.jsonl")
    assert [cell["rate"] for cell in cells if cell["optimizer"] == "AdamW" and cell["split"] == "test"] == [1e-3]
    lpsgd = [cell for cell in cells if cell["optimizer"] == "LPSGD"]
    assert {cell["state_bytes"] for cell in lpsgd} == {0}
    assert [[point["step"] for point in cell["curve"]] for cell in lpsgd] == [[2, 4]] * 2
    monkeypatch.setattr(sys, "argv", ["study_report.py", str(out)])
    study_report.main()
    text = (out / "results.md").read_text()
    assert "| LPSGD, as small as can be |" in text
    assert "loss there" in text
    assert (out / "curves.png").stat().st_size > 1000


def test_a_loss_that_is_no_number_is_the_worst():
    def cell(rate, loss):
        return {"task": "shakespeare", "optimizer": "SGD", "options": {}, "rate": rate, "seed": 0, "eval_loss": loss}

    best = run_study.best_rates([cell(0.1, 2.0), cell(0.3, 1.9), cell(1.0, None)])
    assert list(best.values()) == [0.3]


def test_a_folder_that_is_missing_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    file = tmp_path / "scripted.yaml"
    file.write_text(yaml.safe_dump(SCRIPTED))
    monkeypatch.setattr(sys, "argv", ["run_study.py", str(file), "--texts", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit):
        run_study.main()
    assert "nowhere: no such folder; name the one with the data" in capsys.readouterr().err


def test_a_script_that_refuses_its_flags_ends_the_study_and_names_the_cell(few_steps, tmp_path, monkeypatch):
    task = tasks.TASKS["shakespeare"]
    monkeypatch.setitem(tasks.TASKS, "shakespeare", replace(task, flags=f"{task.flags} --data_seed x"))
    file = tmp_path / "scripted.yaml"
    file.write_text(yaml.safe_dump(SCRIPTED))
    flags = ["run_study.py", str(file), "--output_dir", str(tmp_path), "--workers", "1", "--texts", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", flags)
    with pytest.raises(RuntimeError, match=r'ended with status 2 at .*"optimizer": "AdamW"'):
        run_study.main()
