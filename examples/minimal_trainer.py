"""The Trainer with `--optim lpsgdm`: a tiny Llama learns to count in steps of 1, 2 or 3, as in 4 6 8 0 2.

python examples/minimal_trainer.py --optim lpsgdm --output_dir runs/minimal
"""

import torch
from transformers import HfArgumentParser, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import hf_lpsgd  # noqa: F401  # makes `--optim lpsgd` and `--optim lpsgdm` known to the Trainer

DEFAULTS = {
    "learning_rate": 1e-2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 32,
    "logging_steps": 24,
    "save_strategy": "no",
}


def make_sequences(count: int, seed: int):
    torch.manual_seed(seed)
    starts, steps = torch.randint(10, (count, 1)), torch.randint(1, 4, (count, 1))
    return [{"input_ids": row, "labels": row} for row in (starts + steps * torch.arange(16)) % 10]


def main() -> None:
    parser = HfArgumentParser(TrainingArguments)  # type: ignore[arg-type]
    parser.set_defaults(**DEFAULTS)
    (args,) = parser.parse_args_into_dataclasses()
    torch.manual_seed(args.seed)
    config = LlamaConfig(
        vocab_size=10, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    trainer = Trainer(LlamaForCausalLM(config), args, train_dataset=make_sequences(1024, seed=0))
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    print(trainer.evaluate(make_sequences(256, seed=1)))
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
