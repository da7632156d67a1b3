"""The premise over a training: a short run of the whole, with a real model and real optimizers."""

import json
import sys

import measure_premise
from study import data, tasks


def test_a_short_run_tells_the_best_p_and_its_noise(tmp_path, monkeypatch):
    whole = data.digit_patches()
    few = data.Data(*((inputs[:192], labels[:192]) for inputs, labels in (whole.train, whole.held_out)))
    task = tasks.Task("digits, in short", lambda: few, tasks.TASKS["digits_vit"].model, 2)
    monkeypatch.setitem(tasks.TASKS, "digits_vit", task)
    monkeypatch.setattr(measure_premise, "BATCHES", 2)
    flags = ["measure_premise.py", "--tasks", "digits_vit", "--seeds", "0", "--moments", "3", "--probes", "1"]
    monkeypatch.setattr(sys, "argv", [*flags, "--output_dir", str(tmp_path / "out")])
    measure_premise.main()
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"command", "commit", "versions", "device"} <= record.keys()
    assert [result["optimizer"] for result in record["results"]] == ["AdamW", "LPSGDM"]
    for result in record["results"]:
        assert [point["progress"] for point in result["points"]] == [0.0, 0.4, 1.0]
        for point in result["points"]:
            assert max(point["shares"].values()) == 1.0
            assert point["shares"][f"{point['best_p']:g}"] == 1.0
            assert len(point["best_p_of_small_batches"]) == 2
            assert point["gradient_noise"] is None or point["gradient_noise"] > 0
    assert record["results"][1]["points"][0]["p"] == 20.0
    assert "| digits_vit | AdamW |" in (tmp_path / "out" / "results.md").read_text()
    assert (tmp_path / "out" / "results.png").stat().st_size > 1000
