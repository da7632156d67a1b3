import evaluate
import numpy as np
import pytest
from paths import IMAGE_CLASSIFICATION
from sklearn.metrics import accuracy_score

SCRIPT = IMAGE_CLASSIFICATION / "run" / "accuracy.py"


@pytest.fixture
def metric(monkeypatch):
    def no_network(*args, **kwargs):
        raise AssertionError("the metric asked for the network")

    monkeypatch.setattr("socket.socket.connect", no_network)
    return evaluate.load(str(SCRIPT), keep_in_memory=True)


def test_accuracy_is_the_share_of_right_predictions(metric):
    rng = np.random.default_rng(0)
    predictions, references = rng.integers(0, 4, 501), rng.integers(0, 4, 501)
    result = metric.compute(predictions=predictions, references=references)
    assert result == {"accuracy": pytest.approx(accuracy_score(references, predictions), abs=1e-15)}
    assert type(result["accuracy"]) is float


@pytest.mark.parametrize(("predictions", "expected"), [([3, 1, 2], 1.0), ([0, 0, 0], 0.0), ([3, 1, 0], 2 / 3)])
def test_accuracy_of_few_examples(metric, predictions, expected):
    assert metric.compute(predictions=predictions, references=[3, 1, 2])["accuracy"] == pytest.approx(expected)


def test_batches_add_up(metric):
    metric.add_batch(predictions=[1, 1], references=[1, 0])
    metric.add_batch(predictions=[2], references=[2])
    assert metric.compute()["accuracy"] == pytest.approx(2 / 3)


def test_weights_count_the_examples(metric):
    weight = [0.5, 2.0, 0.0]
    result = metric.compute(predictions=[1, 0, 1], references=[1, 1, 0], sample_weight=weight)
    assert result["accuracy"] == pytest.approx(0.2)


@pytest.mark.parametrize("weight", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")]])
def test_weights_that_do_not_fit_are_refused(metric, weight):
    with pytest.raises(ValueError, match="sample_weight must"):
        metric.compute(predictions=[1, 2], references=[1, 2], sample_weight=weight)
