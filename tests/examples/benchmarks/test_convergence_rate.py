"""The rate of convergence: the fit, and a short run of the whole."""

import json
import sys

import convergence_rate
import numpy as np
import pytest

from hf_lpsgd import LPSGD


def test_the_slope_of_a_power_law_is_its_exponent():
    steps = [100, 1000, 10_000]
    norms = [np.full(8, 5.0 * number**-0.5) for number in steps]
    assert convergence_rate.slope_of(steps, norms) == (pytest.approx(-0.5), pytest.approx(0.0, abs=1e-12))


def test_the_confidence_interval_is_that_of_the_mean_over_seeds():
    noisy = [np.exp(np.linspace(-1, 1, 8)), np.ones(8)]  # slopes from 1 to -1, over a decade of e
    slope, half = convergence_rate.slope_of([1, np.e], noisy)
    assert slope == pytest.approx(0.0, abs=1e-12)
    assert half == pytest.approx(2.3646 * np.linspace(-1, 1, 8).std(ddof=1) / np.sqrt(8))


def test_without_noise_to_speak_of_more_steps_bring_the_gradient_down():
    short, long = (convergence_rate.squared_norms(LPSGD, {"p_max": 2.0}, 0.5, steps, 8).mean() for steps in (30, 300))
    assert long < 0.5 * short


def test_a_short_run_writes_its_table_figure_and_origin(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(convergence_rate, "SCALES", (0.5, 1.0))
    flags = ["convergence_rate.py", "--output_dir", str(tmp_path / "out"), "--steps", "10", "30", "--seeds", "8"]
    monkeypatch.setattr(sys, "argv", flags)
    convergence_rate.main()
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"command", "commit", "versions", "device"} <= record.keys()
    assert len(record["results"]) == len(convergence_rate.CONTENDERS)
    assert all(result["scale"] in (0.5, 1.0) and len(result["mean"]) == 2 for result in record["results"])
    assert (tmp_path / "out" / "results.png").stat().st_size > 1000
    assert "LPSGDM, p_max=20" in capsys.readouterr().out
