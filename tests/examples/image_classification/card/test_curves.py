import json
import subprocess
import sys

import numpy as np
import pytest
from card.curves import plot_history
from paths import IMAGE_CLASSIFICATION
from PIL import Image

HISTORY = [
    {"step": step, "loss": 2 / step, "learning_rate": 1e-3 * (1 - step / 100), "p": 20 - step / 6}
    for step in range(10, 101, 10)
]
HISTORY += [{"step": step, "eval_loss": 3 / step, "eval_accuracy": step / 101} for step in (50, 100)]
PANELS = ("loss", "evaluation accuracy", "learning rate", "p of the lp norm")


def panels(history, tmp_path):
    plot_history(history, tmp_path / "curves.svg")
    drawn = (tmp_path / "curves.svg").read_text()
    return tuple(panel for panel in PANELS if f"<!-- {panel} -->" in drawn)


def test_every_logged_quantity_has_a_panel(tmp_path):
    assert panels(HISTORY, tmp_path) == PANELS


@pytest.mark.parametrize(
    ("lost", "left"),
    [
        ({"p"}, PANELS[:3]),
        ({"eval_accuracy", "eval_loss"}, (PANELS[0], *PANELS[2:])),
        ({"loss", "eval_loss", "learning_rate", "p"}, PANELS[1:2]),
    ],
)
def test_quantity_that_was_never_logged_has_no_panel(tmp_path, lost, left):
    history = [{key: value for key, value in entry.items() if key not in lost} for entry in HISTORY]
    assert panels(history, tmp_path) == left


def test_png_has_the_curves_in_colour_and_the_title(tmp_path):
    plot_history(HISTORY, tmp_path / "plain.png")
    plot_history(iter(HISTORY), str(tmp_path / "titled.png"), title="vit")
    plain, titled = (Image.open(tmp_path / name).convert("RGB") for name in ("plain.png", "titled.png"))
    assert titled.size[1] > plain.size[1] >= 600
    pixels = np.asarray(plain).reshape(-1, 3)
    for colour in ((0x3B, 0x6F, 0xB6), (0x2F, 0x8F, 0x5B), (0x8A, 0x4F, 0xA3), (0xC0, 0x39, 0x2B)):
        assert (pixels == colour).all(axis=1).sum() > 100


def test_values_that_are_not_finite_are_left_out(tmp_path):
    history = [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 1.0, "learning_rate": float("inf")}]
    assert panels(history, tmp_path) == ("loss",)


@pytest.mark.parametrize("history", [[], [{"step": 3, "train_runtime": 2.0}], [{"loss": 1.0}]])
def test_nothing_to_draw_is_a_value_error_that_lists_what_can_be(tmp_path, history):
    with pytest.raises(ValueError, match=r"Nothing to plot.*eval_accuracy.*learning_rate"):
        plot_history(history, tmp_path / "curves.png")


def test_without_matplotlib_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "hf-lpsgd\[plots\]"'):
        plot_history(HISTORY, tmp_path / "curves.png")


def test_no_global_state_of_matplotlib_is_needed(tmp_path):
    code = (
        "import json, sys; from card.curves import plot_history\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plot_history(json.loads(sys.argv[1]), sys.argv[2])\n"
        "assert 'matplotlib.figure' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    command = [sys.executable, "-c", code, json.dumps(HISTORY), str(tmp_path / "curves.png")]
    # In the folder of the scripts, where Python looks first.
    result = subprocess.run(command, cwd=IMAGE_CLASSIFICATION, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
