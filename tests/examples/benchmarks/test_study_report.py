"""The tables of a study: what they are made of, and what they leave out."""

import math

import pytest
import study_report
from small_studies import finished
from study.tested import Tested, tables_of_tested


def test_one_rate_for_all_is_the_one_at_which_the_worst_loses_least():
    family = [{1e-3: [0.9, 0.8], 1e-2: [0.8, 0.8]}, {1e-3: [0.5], 1e-2: [0.7]}]
    assert study_report.common_rate("digits_vit", family) == (1e-2, pytest.approx(0.05))


def test_a_seed_that_was_cut_off_is_not_counted():
    cells = [{"task": task, "seed": seed, "rate": rate} for task in "ab" for seed in (0, 1) for rate in (1, 2)]
    assert study_report.of_whole_seeds(cells) == cells
    assert study_report.of_whole_seeds(cells[:-1]) == cells[:-2]


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
        cell |= {"device": "one", "commit": "a", "own_ms_per_step": time}
    of_one = ("one", {"AdamW": 8.0, "LPSGDM": 6.0})
    adamw_alone = {**cells[0], "commit": "b", "own_ms_per_step": 3.0}
    assert Tested([adamw_alone, *cells], {}).times("digits_vit") == of_one
    no_adamw = [{**adamw_alone, "title": title} for title in ("LPSGDM", "LPSGD", "Lion")]
    assert Tested([*no_adamw, *cells], {}).times("digits_vit") == of_one
    assert Tested(finished(AdamW=[0.5, 0.7], LPSGDM=[0.8, 0.2]), {}).times("digits_vit") == ("", {})
