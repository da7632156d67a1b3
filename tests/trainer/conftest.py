import pytest
import torch
from transformers import Trainer, TrainingArguments

import hf_lpsgd  # noqa: F401


class TinyModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(4, 8)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, inputs, labels):
        logits = self.head(self.body(inputs).tanh())
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


class TinyData(torch.utils.data.Dataset):
    def __init__(self, length):
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(length, 4, generator=generator)
        self.labels = torch.randint(0, 3, (length,), generator=generator)

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return {"inputs": self.inputs[index], "labels": self.labels[index]}


@pytest.fixture
def make_trainer(tmp_path):
    """A function that makes a Trainer of a tiny model; its keywords are those of TrainingArguments."""

    def make(
        *,
        length=40,
        trainer_class=Trainer,
        callbacks=None,
        dataset=None,
        optimizers=(None, None),
        model=None,
        **arguments,
    ):
        torch.manual_seed(0)
        defaults = {
            "output_dir": str(tmp_path / "out"),
            "optim": "lpsgdm",
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
        }
        return trainer_class(
            model or TinyModel(),
            TrainingArguments(**{**defaults, **arguments}),
            train_dataset=dataset or TinyData(length),
            eval_dataset=TinyData(8),
            callbacks=callbacks,
            optimizers=optimizers,
        )

    return make
