"""Train a small GPT-2 to tell the next character of Python source: a plain Trainer script.

    python -m hf_lpsgd examples/benchmarks/study/language_model.py --optim lpsgdm --output_dir runs/language_model

It takes the flags of TrainingArguments and knows nothing of this package's optimizers. The study calls `main`.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction, GPT2Config, GPT2LMHeadModel, HfArgumentParser, Trainer, TrainingArguments

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from study.data import TEXT_LENGTH, text, text_vocabulary


class Pieces(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Pieces of text with their successors; the model itself shifts the labels by one."""

    def __init__(self, pieces: torch.Tensor, following: torch.Tensor) -> None:
        self.tokens = torch.cat([pieces, following[:, -1:]], dim=1)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    predicted, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    return {"accuracy": float((predicted[:, :-1] == labels[:, 1:]).mean())}


@dataclass
class Arguments:
    """What to evaluate on."""

    split: str = field(default="validation", metadata={"help": "on the pieces of the validation, or of the test"})


def main(arguments: list[str] | None = None, **trainer_options: Any) -> tuple[Trainer, dict[str, float]]:
    """Train, and return the Trainer and the evaluation at the end. Those before are on the pieces held out.

    Args:
        arguments: the flags of TrainingArguments and of `Arguments`; those of the command line by default.
        trainer_options: more arguments of the Trainer.
    """
    parser = HfArgumentParser((Arguments, TrainingArguments))  # type: ignore[arg-type]
    of_script, args = parser.parse_args_into_dataclasses(arguments)
    data = text().with_test()
    evaluated = data.test if of_script.split == "test" else data.held_out
    assert evaluated is not None
    torch.manual_seed(args.seed)
    config = GPT2Config(
        vocab_size=text_vocabulary(),
        n_positions=TEXT_LENGTH + 1,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_inner=128,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    trainer = Trainer(
        GPT2LMHeadModel(config),
        args,
        train_dataset=Pieces(*data.train),
        eval_dataset=Pieces(*data.held_out),
        compute_metrics=accuracy,
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
        **trainer_options,
    )
    trainer.train()
    return trainer, trainer.evaluate(Pieces(*evaluated))


if __name__ == "__main__":
    print(main()[1])
