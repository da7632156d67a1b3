"""The models: from scratch, pretrained, or from a checkpoint to the last tensor."""

import json
import re
import sys
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

import transformers
from errors.fail import fail, first_line
from errors.nearest import did_you_mean
from images.arguments import SMALL_SIDE, DataArguments
from images.prepare import Images
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

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


@dataclass
class ModelArguments:
    """Which model is trained."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Pretrained model to start from: a Hub name or a local folder."}
    )
    model_type: str | None = field(
        default=None,
        metadata={
            "help": "Architecture to train from scratch: vit, resnet, convnext, swin or another of transformers; or, "
            "for small images, cifar_resnet (ResNet-18) or cifar_vgg (VGG-11). Default: vit; up to 64 pixels a small "
            "one, unless there are --config_overrides."
        },
    )
    config_overrides: str | None = field(
        default=None,
        metadata={"help": "Changes to the from-scratch config: 'hidden_size=192,depths=[1,1]', or a JSON object."},
    )
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Replace a pretrained head whose number of classes differs."}
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the pretrained model."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where models and datasets are cached."})

    @property
    def chosen(self) -> bool:
        """Whether an option says which model is trained."""
        return any((self.model_name_or_path, self.model_type, self.config_overrides))


def load_model(
    model_args: ModelArguments, data_args: DataArguments, images: Images, do_train: bool = True
) -> tuple[Any, Any]:
    """The model that `model_args` names, for the classes of `images`, and its image processor."""
    if model_args.model_name_or_path is not None:
        if not do_train:
            check_classes(model_args, images.labels)
        return pretrained(model_args, images.labels)
    return from_scratch(model_args, data_args, images.sample, images.labels)


def load_exactly(folder: str) -> Any:
    """The model saved in `folder`, after a check that every tensor of it was restored."""
    try:
        model, info = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    except (OSError, RuntimeError, ValueError) as error:
        fail(f"cannot load the model in {folder!r}: {first_line(error)}")
    wrong = {key: sorted(map(str, value)) for key, value in info.items() if value}
    if wrong:
        fail(f"the model in {folder!r} was not restored in full, so the run cannot go on exactly: {wrong}")
    return model


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
    model_args: ModelArguments, data_args: DataArguments, sample: list[Image.Image], labels: dict[str, Any]
) -> tuple[Any, Any]:
    """A model with random weights and an image processor for it, for images such as those in `sample`."""
    kind, side = model_args.model_type or "vit", min(sample[0].size)
    grey = all(image.mode in ("1", "L", "LA") for image in sample)
    changes: dict[str, Any] = {"image_size": data_args.image_size or (side if side <= SMALL_SIDE else 224)}
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
    if size < 128 and isinstance(known.get("patch_size"), int):
        # The default of 16 is meant for 224 pixels; take about 8 patches per side, none of them cut.
        changes["patch_size"] = next(patch for patch in range(max(2, size // 8), size + 1) if size % patch == 0)
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
    std = 1.5 if grey and channels == 3 else 0.5  # each of three like channels gives a third of what one would
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
        return model, AutoImageProcessor.from_pretrained(folder)


def pretrained(model_args: ModelArguments, labels: dict[str, Any]) -> tuple[Any, Any]:
    """The model and image processor of --model_name_or_path, with a head for `labels`."""
    name = str(model_args.model_name_or_path)
    source: dict[str, Any] = {"revision": model_args.model_revision, "cache_dir": model_args.cache_dir}
    replace = model_args.ignore_mismatched_sizes
    try:
        config = AutoConfig.from_pretrained(name, **source, **labels)
        processor = AutoImageProcessor.from_pretrained(name, **source)
        model = AutoModelForImageClassification.from_pretrained(
            name, config=config, ignore_mismatched_sizes=replace, **source
        )
    except (OSError, RuntimeError, ValueError) as error:
        if "ignore_mismatched_sizes" in str(error):
            classes = len(labels["id2label"])
            fail(f"{name!r} has a head for other classes than the dataset's {classes}: add --ignore_mismatched_sizes")
        fail(f"--model_name_or_path {name!r} cannot be loaded: {first_line(error)}")
    return model, processor


def check_classes(model_args: ModelArguments, labels: dict[str, Any]) -> None:
    """End the run with one line where a model to evaluate as it is has the dataset's classes in another order."""
    name = str(model_args.model_name_or_path)
    try:
        config = AutoConfig.from_pretrained(name, revision=model_args.model_revision, cache_dir=model_args.cache_dir)
    except (OSError, ValueError) as error:
        fail(f"--model_name_or_path {name!r} cannot be loaded: {first_line(error)}")
    its, datas = (list(dict(sorted(of.items())).values()) for of in (config.id2label, labels["id2label"]))
    if its == datas or len(its) != len(datas):  # another number of classes is an error when the weights are loaded
        return
    shown, other = (", ".join(names[:5]) + (", ..." if len(names) > 5 else "") for names in (its, datas))
    if sorted(its) == sorted(datas):
        fail(
            f"the classes of {name!r} are {shown}, and those of the dataset {other}, in another order: each would be "
            "counted as another. Put the dataset's classes in the order of the model's"
        )
    if its != [f"LABEL_{number}" for number in range(len(its))]:
        print(
            f"warning: the classes of {name!r} are {shown}, and those of the dataset {other}: they are taken for the "
            "same, by their numbers",
            file=sys.stderr,
        )
