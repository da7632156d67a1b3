"""Classification accuracy as an `evaluate` metric that loads by path, without the Hub.

import evaluate
metric = evaluate.load("examples/image_classification/run/accuracy.py")
metric.compute(predictions=[0, 1, 2], references=[0, 1, 1])  # {"accuracy": 0.666...}
"""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = "Share of the predictions that equal their reference, between 0 and 1."

_INPUTS = """
Args:
    predictions (list of int): predicted class of each example.
    references (list of int): true class of each example.
    sample_weight (list of float, optional): weight of each example, at least 0, with a positive sum. Default: all 1.
Returns:
    accuracy (float): the weighted share of right predictions, in [0, 1].
Raises:
    ValueError: if there are no examples, or the weights do not fit.
"""


class Accuracy(evaluate.Metric):
    """Accuracy over everything that was added, weighted if weights are given."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references, sample_weight=None):
        right = np.asarray(predictions) == np.asarray(references)
        if right.size == 0:
            raise ValueError("accuracy needs at least one example, got none")
        if sample_weight is None:
            return {"accuracy": float(right.mean())}
        weight = np.asarray(sample_weight, dtype=np.float64)
        if weight.shape != right.shape:
            raise ValueError(f"sample_weight must have one number per example ({right.size}), got {weight.shape}")
        if not (np.isfinite(weight).all() and (weight >= 0).all() and weight.sum() > 0):
            raise ValueError("sample_weight must be finite, at least 0, and have a positive sum")
        return {"accuracy": float((right * weight).sum() / weight.sum())}
