"""A plain Accelerate loop with LPSGDM and an annealed p, right on one process and on several.

torchrun --nproc_per_node 2 examples/minimal_accelerate.py
"""

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset
from transformers import get_cosine_schedule_with_warmup

from hf_lpsgd import LPSGDM, tie_p_schedule

EPOCHS = 10


def main() -> None:
    # Without a GPU, several processes train together only with cpu=True.
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    torch.manual_seed(0)
    inputs = torch.randn(1024, 4)
    targets = inputs[:, :1] * inputs[:, 1:2] + inputs[:, 2:3]
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=32, shuffle=True)
    model = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.GELU(), torch.nn.Linear(64, 1))
    optimizer = LPSGDM(model.parameters(), lr=1e-2, grad_rms="auto", momentum=0.6)

    # Counted before `prepare`. Accelerate shares the batches out, and steps the LR scheduler once per process.
    steps = EPOCHS * len(loader)
    scheduler = get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    tie_p_schedule(optimizer, scheduler, "cosine", num_training_steps=steps, num_warmup_steps=steps // 10)
    for epoch in range(EPOCHS):
        for x, y in loader:
            loss = torch.nn.functional.mse_loss(model(x), y)
            accelerator.backward(loss)
            optimizer.step()  # asks the scheduler for p first
            scheduler.step()
            optimizer.zero_grad()
        mean = accelerator.reduce(loss.detach(), "mean").item()
        accelerator.print(f"epoch {epoch + 1}: loss {mean:.3f}, p {optimizer.param_groups[0]['p']:.3f}")
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
