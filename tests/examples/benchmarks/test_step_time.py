"""The benchmark of the step: what it measures, and what it writes."""

import json
import sys
from statistics import median

import parameter_shapes
import pytest
import step_time
import torch
import trainer_step
from parameter_shapes import SHAPES
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

CONTENDERS = {
    *(f"{name}, {how}" for name in ("LPSGDM", "LPSGD") for how in ("default", "single", "foreach", "fused")),
    "LPSGDM, grad_rms, given",
    "LPSGDM, grad_rms, measured",
    "LPSGDM, grad_rms, float8 momentum",
    "LPSGDM, bfloat16 momentum",
    "LPSGDM, bfloat16 momentum, stochastic rounding",
    *(f"{name}, {how}" for name in ("SGD, momentum", "AdamW") for how in ("foreach", "fused")),
    "Lion (optimi), foreach",
    "copy",
}


def run(monkeypatch, folder, *flags):
    monkeypatch.setattr(sys, "argv", ["step_time.py", "--output_dir", str(folder), "--device", "cpu", *flags])
    step_time.main()
    return json.loads((folder / "results.json").read_text())


@pytest.fixture
def small_shapes(monkeypatch):
    shapes = {"resnet50": [(300, 700), (5,)], "vit_b_16": [(64, 9)], "llm_1b": [(10**6, 10**6)]}
    monkeypatch.setattr(step_time, "SHAPES", {name: lambda these=these: these for name, these in shapes.items()})
    monkeypatch.setattr(trainer_step, "IMPORTS", 1)
    monkeypatch.setattr(trainer_step, "RUNS", 2)
    monkeypatch.setattr(trainer_step, "MODELS", {"tiny": trainer_step.MODELS["the digits' ViT"]})


def test_every_optimizer_is_timed_beside_a_copy_and_what_does_not_fit_is_left_out(
    small_shapes, tmp_path, monkeypatch, capsys
):
    output = run(monkeypatch, tmp_path / "new", "--repeats", "4", "--trainer_steps", "8")
    assert list(output["results"]) == ["resnet50", "vit_b_16"]
    result = output["results"]["resnet50"]
    assert (result["parameters"], result["tensors"]) == (210_005, 2)
    expected = {name for name in CONTENDERS if output["cpu_kernel"] or not name.endswith(("GDM, fused", "GD, fused"))}
    assert set(result["contenders"]) == expected
    for name, values in result["contenders"].items():
        assert len(values["seconds"]) == 4
        assert values["median_seconds"] == median(values["seconds"]) > 0
        # Parameter read and written, gradient read, state read and written, in float32.
        numbers = (
            3
            if "LPSGD," in name
            else 7
            if "AdamW" in name
            else 4
            if "bfloat16" in name
            else 3.5
            if "float8" in name
            else 5
        )
        assert values["bytes_moved"] == numbers * 4 * 210_005
    assert {"command", "commit", "versions", "device", "threads"} <= output.keys()
    text = capsys.readouterr().out
    assert "llm_1b: left out" in text
    assert (tmp_path / "new" / "results.md").read_text() in text
    assert (tmp_path / "new" / "results.png").stat().st_size > 1000
    trained = output["trainer"]["models"]["tiny"]
    assert [list(run) for run in trained["seconds"]] == [
        ["sgd", "lpsgdm", "adamw_torch_fused"],
        ["lpsgdm", "adamw_torch_fused", "sgd"],
    ]
    assert all(len(seconds) == 4 and min(seconds) > 0 for run in trained["seconds"] for seconds in run.values())
    low, high = sorted(trained["lpsgdm_over_sgd_in_each_run"])
    assert low <= trained["lpsgdm_over_sgd"] <= high
    assert 0 < output["trainer"]["import_seconds"] < 60


def test_the_table_tells_ratios_of_medians(small_shapes, tmp_path, monkeypatch):
    output = run(monkeypatch, tmp_path, "--repeats", "3", "--trainer_steps", "0", "--shapes", "resnet50")
    of = output["results"]["resnet50"]["contenders"]
    head, *body = step_time.rows(output["results"]["resnet50"])
    row = next(row for row in body if row[0] == "LPSGDM, default")
    ratio = of["LPSGDM, default"]["median_seconds"] / of["AdamW, foreach"]["median_seconds"]
    assert row[head.index("/ AdamW, foreach")] == f"{ratio:.2f}"
    copied = of["copy"]["median_seconds"] / of["LPSGDM, default"]["median_seconds"]
    assert row[head.index("of copy rate")] == f"{copied:.0%}"
    assert "trainer" not in output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--repeats", "0"], "--repeats must be at least 1"),
        (["--trainer_steps", "-1"], "--trainer_steps at least 0"),
        (["--output_dir", __file__], "File exists; name a folder"),
    ],
)
def test_wrong_flags_are_told_before_anything_is_measured(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(step_time, "measure", None)
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, tmp_path, *flags)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_optimizers_of_a_kind_share_their_state_and_all_their_parameters():
    parameters = step_time.make_parameters([(5, 3), ()], torch.device("cpu"), torch.float32)
    first, second = (torch.optim.AdamW(parameters, foreach=True) for _ in range(2))
    first.step()
    second.step()
    step_time.share_state(second, first)
    for name in ("exp_avg", "exp_avg_sq"):
        assert second.state[parameters[0]][name] is first.state[parameters[0]][name]


def test_shapes_are_those_of_the_models():
    with torch.device("meta"):
        vit = ViTForImageClassification(ViTConfig(num_labels=1000))
        resnet = ResNetForImageClassification(ResNetConfig(num_labels=1000))
    for model, shapes in ((vit, SHAPES["vit_b_16"]()), (resnet, SHAPES["resnet50"]())):
        assert sum(torch.Size(shape).numel() for shape in shapes) == sum(p.numel() for p in model.parameters())
    language_model = sum(torch.Size(shape).numel() for shape in parameter_shapes.llm_1b())
    assert language_model == 1_235_814_400  # as published for Llama 3.2 1B
