import pytest
import torch
from trainer_model import TinyData, TinyModel
from transformers import Trainer, TrainingArguments

import hf_lpsgd  # noqa: F401


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
