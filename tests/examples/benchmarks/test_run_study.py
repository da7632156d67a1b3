"""The study runner: which cells there are, in which order, and that a run that was cut off goes on."""

import importlib
import json
from dataclasses import replace

import pytest
import run_study
import torch
import yaml
from small_studies import SCRIPTED, STUDY, TESTED, finished
from study import tasks, trainer_cell
from study.contenders import make_optimizer
from study.words import known_as
from transformers import HfArgumentParser, TrainingArguments

from hf_lpsgd.trainer.optim_args import validate_optim_args


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


def test_a_run_that_was_cut_off_goes_on_and_the_report_tells_the_rates(short, run, report, tmp_path, capsys):
    out = tmp_path / "out"
    run(STUDY)
    lines = (out / "cells.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 10
    assert {"command", "commit", "versions", "device"} <= json.loads(lines[0])["run"].keys()
    (out / "cells.jsonl").write_text("\n".join(lines[:7]) + '\n{"task": "digi')  # killed while it wrote
    run(STUDY)
    cells = run_study.read_cells(out / "cells.jsonl")
    assert sorted(map(run_study.key_of, cells)) == sorted(map(run_study.key_of, run_study.cells_of(STUDY)))
    run(STUDY)
    assert "all cells are in" in capsys.readouterr().out
    text = report()
    assert "| LPSGDM p_max=20, grad_rms=auto |" in text
    assert (out / "p_max.png").stat().st_size > 1000
    (out / "note.md").write_text("Made with a development version.\n")
    assert report() == text.replace("\n\n", "\n\nMade with a development version.\n\n", 1)
    first, *others = STUDY["contenders"]
    titled = {**STUDY, "contenders": [{**first, "title": "as titled"}, *others]}
    (out / "titled.yaml").write_text(yaml.safe_dump(titled))
    assert "| as titled |" in report("--study", str(out / "titled.yaml"))


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
    ("tasks", "contender", "message"),
    [
        (["digits"], "AdamW", "unknown task 'digits'; the tasks are digits_vit"),
        (["digits_vit"], "Adam", "unknown contender 'Adam'; this study has AdamW, LPSGDM"),
    ],
)
def test_an_unknown_name_is_told_in_one_line(tasks, contender, message, run, capsys):
    with pytest.raises(SystemExit):
        run({**TESTED, "tasks": tasks}, "--contenders", contender)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("text", "message"), [(None, "No such file"), ("tasks: [", "while parsing")])
def test_a_study_that_cannot_be_read_is_told_in_one_line(text, message, tmp_path, monkeypatch, capsys):
    path = tmp_path / "study.yaml"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr("sys.argv", ["run_study.py", str(path)])
    with pytest.raises(SystemExit):
        run_study.main()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert f"cannot read {path}" in line
    assert message in line


@pytest.mark.parametrize(
    ("asked", "trained"), [([], "AdamW LPSGDM Lion"), (["LPSGDM"], "AdamW LPSGDM"), (["Lion"], "Lion")]
)
def test_a_contender_is_run_with_the_one_at_whose_best_rate_it_is_tested(asked, trained, run, monkeypatch):
    cells, lion = [], {"optimizer": "Lion", "rates": [1e-4]}
    monkeypatch.setattr(run_study, "_run_all", lambda found, *_: cells.extend(found))
    run({**TESTED, "contenders": [*TESTED["contenders"], lion]}, "--no_test", "--contenders", *asked)
    assert list(dict.fromkeys(cell["optimizer"] for cell in cells)) == trained.split()


def test_a_contender_is_tested_at_its_best_rate_at_the_first_one_and_at_the_best_of_another():
    chosen = finished(AdamW=[0.5, 0.7], LPSGDM=[0.8, 0.2])
    cells = list(run_study.test_cells_of(TESTED, chosen))
    assert {cell["split"] for cell in chosen} == {"validation"}
    assert {cell["split"] for cell in cells} == {"test"}
    for seed in (0, 1):
        rates = [(cell["optimizer"], cell["rate"]) for cell in cells if cell["seed"] == seed]
        assert rates == [("AdamW", 1e-3), ("AdamW", 1e-2), ("LPSGDM", 1e-5), ("LPSGDM", 3e-3), ("LPSGDM", 1e-2)]


def test_a_study_with_a_test_chooses_first_and_keeps_a_curve_of_each_test(short, run, report, tmp_path, capsys):
    run(TESTED)
    cells = run_study.read_cells(tmp_path / "out" / "cells.jsonl")
    tested = [cell for cell in cells if cell["split"] == "test"]
    assert len(cells) - len(tested) == 4
    assert len(tested) == len(list(run_study.test_cells_of(TESTED, cells)))
    for cell in tested:
        assert [point["step"] for point in cell["curve"]] == list(range(1, 9))
        assert ("p" in cell["curve"][0]) == (cell["optimizer"] == "LPSGDM")
        assert all({"loss", "accuracy", "lr"} <= point.keys() for point in cell["curve"])
    run(TESTED)
    assert "all cells are in" in capsys.readouterr().out
    text = report()
    assert "## digits_vit, on the test data" in text
    assert text.count("| LPSGDM |") == 2
    for name in ("rates", "curves"):
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 1000


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


def test_a_study_of_a_loss_chooses_the_lowest_and_reports_what_its_contenders_are_called(
    few_steps, run, report, tmp_path
):
    out = tmp_path / "out"
    run(SCRIPTED, "--texts", str(tmp_path), "--rates", "1", "--no_test")
    assert [cell["split"] for cell in run_study.read_cells(out / "cells.jsonl")] == ["validation"] * 2
    report()  # before the tests the curves are those of the choice
    (out / "curves.png").rename(out / "curves_of_the_choice.png")
    run(SCRIPTED, "--texts", str(tmp_path))
    cells = run_study.read_cells(out / "cells.jsonl")
    assert [cell["rate"] for cell in cells if cell["optimizer"] == "AdamW" and cell["split"] == "test"] == [1e-3]
    lpsgd = [cell for cell in cells if cell["optimizer"] == "LPSGD"]
    assert {cell["state_bytes"] for cell in lpsgd} == {0}
    assert [[point["step"] for point in cell["curve"]] for cell in lpsgd] == [[2, 4]] * 2
    text = report()
    assert "| LPSGD, as small as can be |" in text
    assert "loss there" in text
    assert (out / "curves.png").stat().st_size > 1000


def test_a_loss_that_is_no_number_is_the_worst():
    def cell(rate, loss):
        return {"task": "shakespeare", "optimizer": "SGD", "options": {}, "rate": rate, "seed": 0, "eval_loss": loss}

    best = run_study.best_rates([cell(0.1, 2.0), cell(0.3, 1.9), cell(1.0, None)])
    assert list(best.values()) == [0.3]


def test_a_folder_that_is_missing_is_told_in_one_line(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(SCRIPTED, "--texts", str(tmp_path / "nowhere"))
    assert "nowhere: no such folder; name the one with the data" in capsys.readouterr().err


def test_a_script_that_refuses_its_flags_ends_the_study_and_names_the_cell(few_steps, run, tmp_path, monkeypatch):
    task = tasks.TASKS["shakespeare"]
    monkeypatch.setitem(tasks.TASKS, "shakespeare", replace(task, flags=f"{task.flags} --data_seed x"))
    with pytest.raises(RuntimeError, match=r'ended with status 2 at .*"optimizer": "AdamW"'):
        run(SCRIPTED, "--texts", str(tmp_path))
