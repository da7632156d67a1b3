"""A training of the study in its own loop, and what it is trained and tested on."""

import pytest
import run_study
import torch
from small_studies import STUDY
from study import data
from study.training import train


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


def test_test_data_are_no_part_of_what_is_trained_on_or_chosen_by():
    for whole in (data.digit_images(), data.text()):
        parts = whole.with_test()
        assert len(parts.train[0]) + len(parts.test[0]) == len(whole.train[0])
        assert len(parts.test[0]) == whole.kept_back > 0
        torch.testing.assert_close(torch.cat([parts.train[0], parts.test[0]]), whole.train[0], rtol=0, atol=0)
        assert parts.with_test() is parts
