"""What a model does with batches, found out before training."""

from typing import Any

import torch
from errors.fail import first_line
from images.views import Views


def blank_images(count: int, model: Any, processor: Any) -> torch.Tensor | None:
    """Images of zeros in the shape that `model` is given; None where the processor does not tell it."""
    views = Views(processor, "RGB", "none")
    if views.height is None or views.width is None:
        return None
    channels = getattr(model.config, "num_channels", 3)
    return torch.zeros(count, channels, views.height, views.width, dtype=model.dtype)


def why_not_trained_on(count: int, model: Any, processor: Any) -> str | None:
    """Why `model` cannot be trained on a batch of `count` images; None if it can, or if that does not show.

    A model of the same shape, with neither memory nor values, is given such a batch.
    """
    pixels = blank_images(count, model, processor)
    if pixels is None:
        return None
    try:
        with torch.device("meta"):
            twin = type(model)(model.config).train()
            twin(pixel_values=pixels.to("meta", twin.dtype))
    except (RuntimeError, ValueError) as error:
        return None if "meta" in str(error).lower() else first_line(error)
    except Exception:  # of the many kinds that code raises which needs values
        return None
    return None


@torch.no_grad()
def divides_by_labels(model: Any, processor: Any) -> bool:
    """Whether `model` divides its loss by the number of labels that it is told of, as of several batches.

    Some, as resnet, take the number and do not.
    """
    pixels, label, was_training = blank_images(1, model, processor), torch.tensor([0]), model.training
    if pixels is None:
        return True
    batch = {"pixel_values": pixels.to(model.device), "labels": label.to(model.device)}
    model.eval()
    try:
        one, two = (float(model(**batch, num_items_in_batch=number).loss) for number in (1, 2))
    except RuntimeError:  # of weights that ZeRO-3 has divided
        return True
    finally:
        model.train(was_training)
    return two < 0.75 * one
