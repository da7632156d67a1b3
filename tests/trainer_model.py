"""A tiny classifier, its data, and what a Trainer has logged of it."""

import torch


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


def logged(trainer, key="p"):
    """What a Trainer has logged beside each learning rate."""
    return [entry[key] for entry in trainer.state.log_history if "learning_rate" in entry]
