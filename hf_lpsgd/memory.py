"""How much memory a model takes while it trains, before it is trained: `python -m hf_lpsgd --memory` prints it."""

from __future__ import annotations

import os
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator, Sequence

import torch

from .optim import OPTIMIZERS
from .trainer.optim_args import OptimArgs

_ARGS = {"lpsgdm": ("", "momentum_dtype=bfloat16", "momentum_dtype=float8"), "lpsgd": ("",)}
_MODES = [(name + end, args) for end in ("", "_layerwise") for name, every in _ARGS.items() for args in every]
_ON_TOP = """
Activations come on top: they grow with the batch and its length. The gradients of a layerwise optimizer are the most
that it holds at a time. FSDP2 and ZeRO-3 share all of it out among the processes."""


def describe_memory(arguments: Sequence[str]) -> str:
    """Return a table of the GB of weights, gradients and optimizer state of the model that `arguments` name."""
    parser = ArgumentParser("python -m hf_lpsgd --memory", description=__doc__)
    parser.add_argument("model", help="folder of a transformers model, or its config.json; no weights are loaded")
    parser.add_argument("--optim", choices=OPTIMIZERS, help="default: all; AdamW is always beside it")
    parser.add_argument("--optim_args", default="", help="as for the Trainer")
    args = parser.parse_args(arguments)
    if not os.path.exists(args.model):
        parser.error(f"there is no folder or file {args.model!r} here")
    try:
        return "\n".join([*_lines(args.model, [(args.optim, args.optim_args)] if args.optim else _MODES), _ON_TOP])
    except (OSError, ValueError, KeyError) as error:  # of whichever kind transformers raises
        parser.error(" ".join(str(error).split()))


def _lines(path: str, modes: Sequence[tuple[str, str]]) -> Iterator[str]:
    import transformers

    config = transformers.AutoConfig.from_pretrained(path)
    with torch.device("meta"):
        model = getattr(transformers, (config.architectures or [""])[0], transformers.AutoModel.from_config)(config)
    # A tied weight gets a gradient from each of its places, before they are added up.
    places = Counter(id(param) for _, param in model.named_parameters(remove_duplicate=False))
    params = list(model.parameters())
    count, largest = sum(map(torch.Tensor.numel, params)), max(param.numel() * places[id(param)] for param in params)
    yield f"{type(model).__name__}: {count:,} parameters; the largest gradient has {largest:,} elements"
    for dtype in (torch.float32, torch.bfloat16):
        yield f"\n{f'GB, with weights in {str(dtype)[6:]}':<42}   weights gradients     state       all"
        held, weights = [param.detach().to(dtype) for param in params], dtype.itemsize * count
        for name, optim_args in [("adamw_torch", ""), *modes]:
            gradients, state = weights, 2 * weights
            if (record := OPTIMIZERS.get(name)) is not None:
                kwargs = OptimArgs.parse(name, optim_args).optimizer_kwargs
                optimizer = record.cls(held, **{**record.trainer_defaults, **kwargs})
                state = sum(buffer.nbytes for buffer in optimizer.buffers(optimizer.param_groups[0], held) or ())
                gradients = weights if record.ordinary is None else dtype.itemsize * largest
            numbers = (weights, gradients, state, weights + gradients + state)
            yield f"{f'{name} {optim_args}':<42}" + "".join(f"{number / 1e9:10.3f}" for number in numbers)
