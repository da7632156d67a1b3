"""What the study borrows of the showcase, examples/image_classification: its script and its model cards."""

import importlib
import sys
from pathlib import Path
from typing import Any

__all__ = ["keep", "of_showcase"]

SHOWCASE = Path(__file__).resolve().parents[2] / "image_classification"


def of_showcase(module: str) -> Any:
    """A module of the showcase, whose modules import each other by names without a package."""
    if str(SHOWCASE) not in sys.path:
        sys.path.insert(0, str(SHOWCASE))
    return importlib.import_module(module)


def keep(trainer: Any, **facts: Any) -> None:
    """Leave the model, what was logged and a model card in the output folder.

    Args:
        trainer: a Trainer that has trained, with evaluations on its `eval_dataset`, and was evaluated then on all of
            the dataset of which that is a `Subset`.
        facts: of the card, besides the numbers of examples.
    """
    trainer.save_model()
    trainer.save_state()
    facts |= {"train_examples": len(trainer.train_dataset), "watched": len(trainer.eval_dataset)}
    facts |= {"eval_examples": len(trainer.eval_dataset.dataset)}
    of_showcase("card.writing").write_model_card(trainer, of_showcase("card.facts").RunFacts(**facts))
    print(f"card: {Path(trainer.args.output_dir) / 'README.md'}")
