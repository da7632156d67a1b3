"""What a model card states of a run and the Trainer does not know."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard


@dataclass(frozen=True)
class RunFacts:
    """Facts about a run that the card states and the Trainer does not know.

    Attributes:
        dataset: the dataset's name for a reader.
        dataset_id: its name on the Hub. Default: it is not there.
        dataset_config: its configuration. Default: none.
        eval_split: the split evaluated on. Default: none was.
        train_examples: number of examples trained on. Default: not stated.
        eval_examples: number of examples evaluated on. Default: not stated.
        watched: on how many of these the evaluations during the training were. Default: on all.
        left_out: numbers of images to train and to evaluate on that were left out, as they cannot be decoded. Default:
            not stated.
        base_model: the pretrained model that was started from. Default: trained from scratch.
        license: identifier of the model's licence, one of the Hub's. Default: none is stated.
        dataset_folder: name of the folder that holds the dataset. Default: it lies in none.
        hyperparameters: further rows of the table of hyperparameters.
        task: what the model does, as the Hub names it.
        kind: what it is, in words.
        examples: what it is trained on, in the plural.
        pipeline_input: an input for a pipeline of the model, as code. None: no pipeline is shown.
    """

    dataset: str
    dataset_id: str | None = None
    dataset_config: str | None = None
    eval_split: str | None = None
    train_examples: int | None = None
    eval_examples: int | None = None
    watched: int | None = None
    left_out: tuple[int, int] | None = None
    base_model: str | None = None
    license: str | None = None
    dataset_folder: str | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    task: str = "image-classification"
    kind: str = "An image classifier"
    examples: str = "images"
    pipeline_input: str | None = '"image.png"'


def license_of(model: str) -> str | None:
    """The licence that the card of a pretrained model names, on the Hub or in a folder; None if it names none."""
    readme = Path(model) / "README.md"
    try:
        if not readme.is_file() and Path(model).is_dir():
            return None
        licence = ModelCard.load(readme if readme.is_file() else model).data.license
    except (OSError, ValueError):  # out of reach, or a card with faulty metadata
        return None
    return None if licence in (None, "", "unknown") else licence
