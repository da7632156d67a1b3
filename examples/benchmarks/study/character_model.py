"""Train nanoGPT's character model, in its setting for a CPU, on a text file: a plain Trainer script.

    python -m hf_lpsgd examples/benchmarks/study/character_model.py --text_file tinyshakespeare.txt --optim lpsgdm \
        --learning_rate 1e-3 --max_steps 2000 --output_dir runs/character_model

It takes the flags of TrainingArguments and knows nothing of this package's optimizers. The study calls `main`. As a
command it leaves the model and a model card.
The model is transformers' GPT-2 with nanoGPT's sizes, initial weights and GELU. Its biases stay at zero, as nanoGPT
has none. A batch is made of random places in the text. The loss is the mean over all 64 characters of each.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import Subset
from transformers import GPT2Config, GPT2LMHeadModel, HfArgumentParser, Trainer, TrainingArguments, set_seed

CONTEXT = 64
WATCHED = 256  # of the pieces held out, on which the curve has the loss


@dataclass
class Arguments:
    """What to train on, and with which weights."""

    text_file: str = field(metadata={"help": "the text; its last tenth is kept to test on"})
    split: str = field(
        default="test",
        metadata={
            "help": "test: train on nine tenths of the text. validation: do not train on the last twentieth of the "
            "text before the test data, and evaluate on that"
        },
    )
    dtype: str = field(default="float32", metadata={"help": "of the weights, the activations and the gradients"})


class Pieces(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Pieces of a text that begin at `starts`; each character is to be predicted from those before it."""

    def __init__(self, characters: Tensor, starts: Tensor) -> None:
        self.characters, self.starts = characters, starts

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        start = int(self.starts[index])
        piece = self.characters[start : start + CONTEXT + 1]
        return {"input_ids": piece[:-1], "labels": piece[1:]}


def read_text(path: str) -> tuple[Tensor, int]:
    """The characters of a text as numbers, and how many different ones there are."""
    text = Path(path).read_text(encoding="utf-8")
    vocabulary = {character: number for number, character in enumerate(sorted(set(text)))}
    return torch.tensor([vocabulary[character] for character in text]), len(vocabulary)


def make_model(characters: int) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=characters,
        n_positions=CONTEXT,
        n_embd=128,
        n_layer=4,
        n_head=4,
        activation_function="gelu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    model = GPT2LMHeadModel(config)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            parameter.requires_grad_(False)
    return model


def loss_of(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return cross_entropy(outputs["logits"].float().flatten(0, 1), labels.flatten())


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
    characters, vocabulary = read_text(of_script.text_file)
    of_test = len(characters) * 9 // 10
    of_validation = len(characters) * 17 // 20
    end, until = (of_validation, of_test) if of_script.split == "validation" else (of_test, len(characters))
    set_seed(args.seed)
    starts = torch.randint(end - CONTEXT, (args.max_steps * args.train_batch_size,))
    whole = Pieces(characters, torch.arange(end, until - CONTEXT, CONTEXT))
    trainer = Trainer(
        make_model(vocabulary).to(getattr(torch, of_script.dtype)),
        args,
        train_dataset=Pieces(characters, starts),
        eval_dataset=Subset(whole, range(0, len(whole), max(1, len(whole) // WATCHED))),
        compute_loss_func=loss_of,
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
        dataset=Path(given.text_file).stem,
        eval_split=given.split,
        task="text-generation",
        kind="A character model",
        examples="pieces of 64 characters",
        pipeline_input=None,
    )
    print(f"loss = {final['eval_loss']:.3f}")
