"""How much memory a model takes while it trains, before it is trained: `python -m hf_lpsgd --memory` prints it."""

from __future__ import annotations

import os
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator, Sequence

import torch

from .optim import OPTIMIZERS
from .trainer.optim_args import OptimArgs

_NAMES = ("lpsgdm", "lpsgdm_layerwise", "lpsgd", "lpsgd_layerwise")
_MODES = [("lpsgdm", dtype) for dtype in ("", "momentum_dtype=bfloat16", "momentum_dtype=float8")]
_MODES = [*_MODES, ("lpsgd", ""), *((f"{name}_layerwise", args) for name, args in [*_MODES, ("lpsgd", "")])]
_ON_TOP = (
    "Activations come on top: they grow with the batch and its length. Gradients of a layerwise optimizer are the most\n"
    "that is held at a time. Of several processes, FSDP2 and ZeRO-3 share all of it out; this is the sum."
)


def describe_memory(arguments: Sequence[str]) -> str:
    """Return a table of the GB of weights, gradients and optimizer state of the model that `arguments` name."""
    parser = ArgumentParser("python -m hf_lpsgd --memory", description=__doc__)
    parser.add_argument("model", help="folder of a transformers model, or its config.json; no weights are loaded")
    parser.add_argument("--optim", choices=OPTIMIZERS, help="default: all, and AdamW beside them")
    parser.add_argument("--optim_args", default="", help="as for the Trainer")
    args = parser.parse_args(arguments)
    if not os.path.exists(args.model):
        parser.error(f"there is no folder or file {args.model!r} here")
    try:
        modes = [(args.optim, args.optim_args)] if args.optim else _MODES
        return "\n".join([*_lines(args.model, modes), "", _ON_TOP])
    except (OSError, ValueError, KeyError) as error:  # of whichever kind transformers raises
        parser.error(" ".join(str(error).split()))


def _lines(path: str, modes: Sequence[tuple[str, str]]) -> Iterator[str]:
    import transformers

    config = transformers.AutoConfig.from_pretrained(path)
    kind = getattr(transformers, (config.architectures or [""])[0], transformers.AutoModel.from_config)
    with torch.device("meta"):
        model = kind(config)
    # A tied weight gets a gradient from each of its places before they are added up.
    places = Counter(id(param) for _, param in model.named_parameters(remove_duplicate=False))
    params = list(model.parameters())
    count, largest = sum(map(torch.Tensor.numel, params)), max(param.numel() * places[id(param)] for param in params)
    yield f"{type(model).__name__}: {count:,} parameters; the largest gradient has {largest:,} elements"
    for dtype in (torch.float32, torch.bfloat16):
        size = dtype.itemsize
        yield f"\n{f'GB, weights in {str(dtype)[6:]}':<45} {'weights':>9} {'gradients':>9} {'state':>9} {'together':>9}"
        params = [param.detach().to(dtype) for param in params]
        for name, optim_args in [("adamw_torch", ""), *modes]:
            gradients, state = size * count, 2 * size * count
            if name in OPTIMIZERS:
                record = OPTIMIZERS[name]
                kwargs = OptimArgs.parse(name, optim_args).optimizer_kwargs
                optimizer = record.cls(params, **{**record.trainer_defaults, **kwargs})
                (group,) = optimizer.param_groups
                state = sum(buffer.nbytes for buffer in optimizer.buffers(group, params) or ())
                gradients = gradients if record.ordinary is None else size * largest
            numbers = (size * count, gradients, state, size * count + gradients + state)
            yield f"{f'{name} {optim_args}':<45} " + " ".join(f"{number / 1e9:9.3f}" for number in numbers)
