"""The benchmark of the data's speed measures what it says, on data that it generates."""

import importlib.util
import json
import sys
from statistics import median

import pytest
from paths import EXAMPLES

SCRIPT = EXAMPLES / "benchmarks" / "data_throughput.py"


def test_benchmark_writes_speeds_and_where_they_come_from(run_example, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("data_throughput", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    output = tmp_path / "new" / "results.json"
    flags = ["--output", str(output), "--steps", "6", "--warmup", "2", "--generated_images", "64", "--use_cpu"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *flags, "--per_device_train_batch_size", "8"])
    module.main()
    results = json.loads(output.read_text())
    assert results["cached"]
    assert (results["images"], results["batch_size"], results["steps"]) == (64, 8, 6)
    assert len(results["loop_seconds"]) == len(results["model_alone_seconds"]) == 6
    assert results["images_per_second"]["loop"] == pytest.approx(8 / median(results["loop_seconds"]))
    ratio = results["images_per_second"]["loop"] / results["images_per_second"]["model_alone"]
    assert results["ratio_of_medians"] == pytest.approx(ratio)
    assert results["command"].endswith(" ".join(flags[2:]) + " --per_device_train_batch_size 8")
    assert {"commit", "versions", "device", "threads"} <= results.keys()
    assert "whole loop:" in capsys.readouterr().out
