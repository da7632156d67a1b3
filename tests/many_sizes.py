"""An optimizer with two param groups, and gradients whose sizes differ by many orders of magnitude."""

import torch

SHAPES = [(37, 5), (1000,), (3, 4, 5), (1,)]
DECAY, LR = 0.1, 0.01


def make(cls, *, groups=2, dtype=torch.float32, **options):
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in SHAPES]
    cut = [params] if groups == 1 else [params[:2], params[2:]]
    options = {"lr": LR, "p_max": 6.0, "weight_decay": DECAY, **options}
    return cls([{"params": some} for some in cut], **options), params


def set_gradients(params, step, scale=1e-3):
    generator = torch.Generator().manual_seed(1000 + step)
    for param in params:
        # Sizes of many orders of magnitude, as in a pretrained network with a new head.
        sizes = 10.0 ** (2 * torch.randn(param.shape, generator=generator))
        param.grad = (torch.randn(param.shape, generator=generator) * sizes * scale).to(param.dtype)
