"""Whether a model can be trained on the batches that it will be given, found out before training."""

from typing import Any

import torch
from errors.fail import first_line
from images.views import Views


def why_not_trained_on(count: int, model: Any, processor: Any) -> str | None:
    """Why `model` cannot be trained on a batch of `count` images; None if it can, or if that does not show.

    A model of the same shape, with neither memory nor values, is given such a batch.
    """
    views = Views(processor, "RGB", "none")
    if views.height is None or views.width is None:
        return None
    try:
        with torch.device("meta"):
            twin = type(model)(model.config).train()
            pixels = torch.zeros(count, getattr(model.config, "num_channels", 3), views.height, views.width)
            twin(pixel_values=pixels.to(twin.dtype))
    except (RuntimeError, ValueError) as error:
        return None if "meta" in str(error).lower() else first_line(error)
    except Exception:  # of the many kinds that code raises which needs values
        return None
    return None
