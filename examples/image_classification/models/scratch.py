"""Models with random weights: of which size, for which images."""

import json
import re
from tempfile import TemporaryDirectory
from typing import Any

import transformers
from errors.fail import fail, warn
from errors.nearest import did_you_mean
from images.arguments import SMALL_SIDE, DataArguments
from images.sample import Sample
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from .arguments import ModelArguments
from .trial import why_not_trained_on

# What changes when no dataset is named.
DIGITS_MODEL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "patch_size": 2,
    "initializer_range": 0.1,
}
# A ViT from scratch for small images, where no option names a model: 2.7 million parameters, not 85.
SMALL_VIT = {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3, "num_hidden_layers": 6}


def read_overrides(text: str) -> dict[str, Any]:
    if text.lstrip().startswith("{"):
        return json.loads(text)
    overrides = {}
    for item in re.split(r",(?![^\[]*\])", text):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise ValueError(f"{item!r} has no '='")
        try:
            overrides[key] = json.loads(value.lower() if value in ("True", "False") else value)
        except ValueError:
            overrides[key] = value
    return overrides


def from_scratch(
    model_args: ModelArguments, data_args: DataArguments, sample: Sample, labels: dict[str, Any]
) -> tuple[Any, Any]:
    """A model with random weights and an image processor for it, for images such as those of `sample`."""
    kind = model_args.model_type or "vit"
    changes: dict[str, Any] = {"image_size": data_args.image_size or (sample.side if sample.are_small else 224)}
    changes["num_channels"] = 3  # for grey images too: a pipeline makes every image RGB
    try:
        known = AutoConfig.for_model(kind).to_dict()
    except ValueError:
        guess = did_you_mean(kind, ("cifar_resnet", "cifar_vgg", *MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES))
        fail(f"--model_type {kind!r} is no known architecture.{guess} Try vit, resnet or cifar_resnet")
    try:
        overrides = read_overrides(model_args.config_overrides) if model_args.config_overrides else {}
    except ValueError as error:
        fail(f"--config_overrides {model_args.config_overrides!r} is neither 'key=value,...' nor JSON: {error}")
    unknown = sorted(set(overrides) - set(known) - set(changes))
    if unknown:
        guess = did_you_mean(unknown[0], (*known, *changes))
        fail(f"--config_overrides: {kind} has no {', '.join(unknown)}.{guess} It has {', '.join(known)}")
    size = overrides.get("image_size", changes["image_size"])
    if not isinstance(size, int) or size < 1:
        fail(f"--config_overrides image_size={size}: it must be a whole number of at least 1, the side of a square")
    if size < 128 and isinstance(known.get("patch_size"), int) and "patch_size" not in overrides:
        # The default of 16 is meant for 224 pixels.
        if data_args.image_size is None and "image_size" not in overrides:
            size = changes["image_size"] = next(side for side in range(size, 0, -1) if patch_for(side))
        changes["patch_size"] = patch_for(size) or max(2, size // 8)
    if data_args.is_digits and kind == "vit":
        changes.update(DIGITS_MODEL)
    elif size <= SMALL_SIDE and not model_args.chosen:
        changes.update(SMALL_VIT)
    given = {**changes, **overrides}
    try:
        config = AutoConfig.for_model(kind, **given, **labels)
        model = AutoModelForImageClassification.from_config(config)
    except Exception as error:  # of the many kinds that configs and layers raise for values that do not fit
        fail(f"no image classifier of --model_type {kind!r} with {given}: {' '.join(str(error).split())}")
    # The class that needs no torchvision; before transformers had two backends, the plain name was that class.
    processor_class = getattr(transformers, "BitImageProcessorPil", None) or transformers.BitImageProcessor
    channels = config.num_channels
    std = 1.5 if sample.are_grey and channels == 3 else 0.5  # each of three like channels gives a third of one
    processor = processor_class(
        size={"shortest_edge": size if size < 128 else round(size / 0.875)},
        crop_size={"height": size, "width": size},
        image_mean=[0.5] * channels,
        image_std=[std] * channels,
        do_convert_rgb=channels == 3,
    )
    # Read as from a checkpoint: where there is torchvision, that gives the class that uses it, which rounds otherwise.
    with TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        processor = AutoImageProcessor.from_pretrained(folder)
    problem = why_not_trained_on(2, model, processor)
    if problem is not None:
        fail(f"--model_type {kind!r} with {given} cannot be trained on images of {size} x {size} pixels: {problem}")
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, int) and size % patch:
        warn(f"no whole number of patches of {patch} makes {size} pixels: the last {size % patch} are not seen")
    return model, processor


def patch_for(side: int) -> int | None:
    """The side of a patch: 4 to 16 of them make `side` pixels, none cut, some 8 if possible; None if there is none."""
    fitting = [patch for patch in range(1, side + 1) if side % patch == 0 and min(4, side) <= side // patch <= 16]
    return next((patch for patch in fitting if patch >= max(2, side // 8)), fitting[-1] if fitting else None)
