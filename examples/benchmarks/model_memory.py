"""How much memory a model takes while it trains, before it is trained: for its weights, gradients and optimizer state.

    python examples/benchmarks/model_memory.py MODEL
    python examples/benchmarks/model_memory.py MODEL --optim lpsgdm_layerwise --optim_args momentum_dtype=bfloat16

MODEL is the folder of a transformers model, or its config.json. No weights are loaded.
"""

from __future__ import annotations

import os
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
import transformers

from hf_lpsgd.optim import OPTIMIZERS
from hf_lpsgd.trainer import OptimArgs

FLOAT8 = "momentum_dtype=float8,rounding=stochastic"
ARGS = {"lpsgdm": ("", "momentum_dtype=bfloat16", FLOAT8), "lpsgd": ("",)}
MODES = [(name + end, args) for end in ("", "_layerwise") for name, every in ARGS.items() for args in every]
ON_TOP = """
Activations come on top: they grow with the batch and its length. The gradients of a layerwise optimizer are the most
that it holds at a time. FSDP2 and ZeRO-3 share all of it out among the processes."""


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a transformers model, or its config.json")
    parser.add_argument("--optim", choices=OPTIMIZERS, help="default: all; AdamW is always beside it")
    parser.add_argument("--optim_args", default="", help="as for the Trainer; needs --optim")
    args = parser.parse_args()
    if not os.path.exists(args.model):
        parser.error(f"there is no folder or file {args.model!r} here")
    if args.optim_args and not args.optim:
        parser.error("--optim_args needs --optim, which names the optimizer that they are for")
    try:
        lines = [*table(args.model, [(args.optim, args.optim_args)] if args.optim else MODES), ON_TOP]
    except (OSError, ValueError, KeyError) as error:  # of whichever kind transformers raises
        parser.error(" ".join(str(error).split()))
    print("\n".join(lines))


def table(path: str, modes: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yield the lines of a table of GB, for each of these optimizers and optim_args."""
    config = transformers.AutoConfig.from_pretrained(path)
    with torch.device("meta"):
        model = getattr(transformers, (config.architectures or [""])[0], transformers.AutoModel.from_config)(config)
    # A tied weight gets a gradient from each of its places, before they are added up.
    places = Counter(id(param) for _, param in model.named_parameters(remove_duplicate=False))
    params = list(model.parameters())
    count, largest = sum(map(torch.Tensor.numel, params)), max(param.numel() * places[id(param)] for param in params)
    yield f"{type(model).__name__}: {count:,} parameters; the largest gradient has {largest:,} elements"
    width = max(len(f"{name} {optim_args}") for name, optim_args in modes) + 2
    for dtype in (torch.float32, torch.bfloat16):
        yield f"\n{f'GB, with weights in {str(dtype)[6:]}':<{width}}   weights gradients     state       all"
        held, weights = [param.detach().to(dtype) for param in params], dtype.itemsize * count
        for name, optim_args in [("adamw_torch", ""), *modes]:
            gradients, state = weights, 2 * weights
            if (record := OPTIMIZERS.get(name)) is not None:
                kwargs = OptimArgs.parse(name, optim_args).optimizer_kwargs
                optimizer = record.cls(held, **{**record.trainer_defaults, **kwargs})
                state = sum(buffer.nbytes for buffer in optimizer.buffers(optimizer.param_groups[0], held) or ())
                gradients = weights if record.ordinary is None else dtype.itemsize * largest
            numbers = (weights, gradients, state, weights + gradients + state)
            yield f"{f'{name} {optim_args}':<{width}}" + "".join(f"{number / 1e9:10.3f}" for number in numbers)


if __name__ == "__main__":
    main()
