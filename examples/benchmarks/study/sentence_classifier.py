"""Fine-tune a pretrained model to tell the sentiment of a sentence: a plain Trainer script.

    python -m hf_lpsgd examples/benchmarks/study/sentence_classifier.py --model_name_or_path MODEL \
        --train_file sst2_train.tsv --test_file sst2_dev.tsv --optim lpsgdm --learning_rate 5e-5 --output_dir runs/sst2

It takes the flags of TrainingArguments and knows nothing of this package's optimizers. The study calls `main`. As a
command it leaves the model and a model card.
A file has one example a line: a label and a text, with a tab between. Its first line names the two; one is `label`.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

HELD_OUT = 2000
WATCHED = 400  # of the examples to evaluate on, on which the curve has the accuracy


@dataclass
class Arguments:
    """What to train on, and with which weights."""

    model_name_or_path: str = field(metadata={"help": "a pretrained model with its tokenizer, on the Hub or a folder"})
    train_file: str = field(metadata={"help": "the examples to train on, of which some are held out"})
    test_file: str = field(metadata={"help": "the examples to test on"})
    split: str = field(default="test", metadata={"help": "evaluate on the examples of the test, or of the validation"})
    max_train_samples: int = field(default=16000, metadata={"help": "how many examples to train on"})
    dtype: str = field(default="float32", metadata={"help": "of the weights, the activations and the gradients"})


def read_examples(path: str) -> list[tuple[str, int]]:
    with open(path, encoding="utf-8") as file:
        names, *lines = [line.rstrip("\n").split("\t") for line in file]
    label = names.index("label")
    return [(line[1 - label], int(line[label])) for line in lines]


class Sentences(torch.utils.data.Dataset[dict[str, Any]]):
    """Texts as tokens, with their labels."""

    def __init__(self, examples: list[tuple[str, int]], tokenizer: Any) -> None:
        texts, self.labels = zip(*examples, strict=True)
        self.tokens = tokenizer(list(texts), truncation=True, max_length=128)["input_ids"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.tokens[index], "label": self.labels[index]}


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float(np.mean(prediction.predictions == prediction.label_ids))}


def main(arguments: list[str], **trainer_options: Any) -> tuple[Trainer, dict[str, float]]:
    """`train` with the flags of TrainingArguments and of `Arguments`."""
    return train(*parse(arguments), **trainer_options)


def parse(arguments: list[str] | None = None) -> tuple[Arguments, TrainingArguments]:
    parser = HfArgumentParser((Arguments, TrainingArguments))  # type: ignore[arg-type]
    of_script, args = parser.parse_args_into_dataclasses(arguments)
    return of_script, args


def train(of_script: Arguments, args: TrainingArguments, **trainer_options: Any) -> tuple[Trainer, dict[str, float]]:
    """Train, and return the Trainer and the evaluation at the end.

    Args:
        of_script: what to train on.
        args: how to train.
        trainer_options: more arguments of the Trainer.
    """
    examples = read_examples(of_script.train_file)
    random.Random(0).shuffle(examples)
    held_out, kept = examples[:HELD_OUT], examples[HELD_OUT:][: of_script.max_train_samples]
    evaluated = held_out if of_script.split == "validation" else read_examples(of_script.test_file)
    evaluated.sort(key=lambda example: len(example[0]))  # little padding in a batch
    tokenizer = AutoTokenizer.from_pretrained(of_script.model_name_or_path)
    whole = Sentences(evaluated, tokenizer)
    set_seed(args.seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        of_script.model_name_or_path, num_labels=2, dtype=of_script.dtype
    )
    trainer = Trainer(
        model,
        args,
        train_dataset=Sentences(kept, tokenizer),
        eval_dataset=Subset(whole, range(0, len(whole), max(1, len(whole) // WATCHED))),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
        **trainer_options,
    )
    trainer.train()
    return trainer, trainer.evaluate(whole)


if __name__ == "__main__":
    from showcase import keep

    given, args = parse()
    trainer, final = train(given, args)
    keep(
        trainer,
        dataset=Path(given.train_file).stem,
        eval_split=Path(given.test_file).stem if given.split == "test" else given.split,
        base_model=given.model_name_or_path,
        task="text-classification",
        kind="A classifier of sentences",
        examples="sentences",
        pipeline_input='"A charming film."',
    )
    print(f"accuracy = {final['eval_accuracy']:.3f}")
