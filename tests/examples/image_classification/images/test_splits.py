"""Images held out to evaluate on, and classes that are evaluated and not trained on."""

import datasets
import numpy as np
import pytest


@pytest.fixture
def held_out(example, capsys):
    """How many images of each class are trained and evaluated on, where classes have so many, and what is said."""
    from images.splits import hold_out

    def run(counts, share=0.15):
        labels = [number for number, count in enumerate(counts) for _ in range(count)]
        names = [f"class{number}" for number in range(len(counts))]
        features = datasets.Features({"label": datasets.ClassLabel(names=names), "row": datasets.Value("int64")})
        rows = datasets.Dataset.from_dict({"label": labels, "row": range(len(labels))}, features=features)
        train, evaluation = hold_out(rows, share, "label")
        assert sorted([*train["row"], *evaluation["row"]]) == list(range(len(labels)))
        of_each = [np.bincount(part["label"][:], minlength=len(counts)).tolist() for part in (train, evaluation)]
        return *of_each, capsys.readouterr().err

    return run


def test_classes_large_enough_are_split_as_datasets_splits_them(held_out):
    train, evaluation, said = held_out([100, 40, 20])
    assert (train, evaluation, said) == ([85, 34, 17], [15, 6, 3], "")


def test_a_class_of_one_image_is_trained_on_and_named_and_the_others_keep_their_shares(held_out):
    train, evaluation, said = held_out([1, 100, 1, 40])
    assert (train, evaluation) == ([1, 85, 1, 34], [0, 15, 0, 6])
    assert said.startswith("warning: ")
    assert said.endswith("trained on and not evaluated: class0, class2\n")


@pytest.mark.parametrize(
    ("counts", "share"),
    [([2] * 60 + [100], 0.15), ([1] * 300 + [1000, 500], 0.15), ([2, 2, 3], 0.9), ([10, 10, 10], 0.95), ([1, 2], 0.5)],
)
def test_every_class_is_trained_on_and_large_ones_keep_their_shares(held_out, counts, share):
    train, evaluation, said = held_out(counts, share)
    assert min(train) >= 1
    assert sum(evaluation) >= 1
    large = [number for number, count in enumerate(counts) if min(share, 1 - share) * count > 2]
    assert all(evaluation[number] == pytest.approx(share * counts[number], abs=1) for number in large)
    assert (0 in evaluation) == ("not evaluated: class" in said)


def test_nothing_can_be_held_out_of_classes_of_one_image(held_out, capsys):
    with pytest.raises(SystemExit):
        held_out([1, 1, 1])
    assert "no class has two images" in capsys.readouterr().err


def sorted_rows(count):
    features = datasets.Features({"label": datasets.ClassLabel(names=["cat", "dog"]), "row": datasets.Value("int64")})
    half = count // 2
    return datasets.Dataset.from_dict({"label": [0] * half + [1] * half, "row": range(count)}, features=features)


def test_the_same_images_are_held_out_of_a_run_that_only_trains_and_of_one_that_only_evaluates(example):
    from images.arguments import DataArguments
    from images.splits import choose_splits

    def chosen(do_train, do_eval):
        parts = choose_splits({"train": sorted_rows(40)}, None, DataArguments(), "label", do_train, do_eval)
        return [None if part is None else part["row"][:] for part in parts]

    train, evaluation = chosen(True, True)
    assert not set(train) & set(evaluation)
    assert chosen(True, False) == [train, None]
    assert chosen(False, True) == [None, evaluation]


def test_a_run_that_only_trains_has_the_whole_training_split_where_there_is_one_to_evaluate_on(example, hub_like):
    from images.arguments import DataArguments
    from images.prepare import load_images

    data = DataArguments(dataset_name=str(hub_like["cifar10"]))
    assert len(load_images(data, None, do_train=True, do_eval=False).train) == 24


def test_some_images_of_a_stream_to_evaluate_on_are_of_all_classes_and_always_the_same(example):
    from images.arguments import DataArguments
    from images.splits import choose_streams

    splits = datasets.IterableDatasetDict({"validation": sorted_rows(40).to_iterable_dataset()})
    args = DataArguments(max_eval_samples=10, shuffle_buffer=30)
    _, stream = choose_streams(splits, args, "label", do_train=False, do_eval=True)
    first, second = ([row["row"] for row in stream] for _ in range(2))
    assert len(first) == 10
    assert {row // 20 for row in first} == {0, 1}
    assert first == second


def test_a_class_that_is_evaluated_and_has_no_image_to_train_on_is_named(example, capsys):
    from images.splits import warn_of_classes_never_trained_on

    features = datasets.Features({"label": datasets.ClassLabel(names=["cat", "dog", "newt"])})
    train, more = (
        datasets.Dataset.from_dict({"label": labels}, features=features) for labels in ([0, 0, 1], [2, 1, 0])
    )
    warn_of_classes_never_trained_on(train, more, "label")
    assert capsys.readouterr().err.endswith("have no image to train on: newt\n")
    warn_of_classes_never_trained_on(more, train, "label")
    assert capsys.readouterr().err == ""
