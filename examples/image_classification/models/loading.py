"""The models: from scratch, pretrained, or from a checkpoint to the last tensor."""

from typing import Any

from errors.fail import fail, first_line, warn
from errors.hub import hub_is_busy
from images.arguments import DataArguments
from images.labels import composed
from images.prepare import Images
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from .arguments import ModelArguments
from .scratch import from_scratch


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
    except Exception as error:  # of the many kinds that the Hub's client and the readers of files raise
        if "ignore_mismatched_sizes" in str(error):
            classes = len(labels["id2label"])
            fail(f"{name!r} has a head for other classes than the dataset's {classes}: add --ignore_mismatched_sizes")
        fail(f"--model_name_or_path {name!r} cannot be loaded: {hub_is_busy(error) or first_line(error)}")
    return model, processor


def check_classes(model_args: ModelArguments, labels: dict[str, Any]) -> None:
    """End the run with one line where a model to evaluate as it is has the dataset's classes in another order."""
    name = str(model_args.model_name_or_path)
    try:
        config = AutoConfig.from_pretrained(name, revision=model_args.model_revision, cache_dir=model_args.cache_dir)
    except Exception as error:  # of the many kinds that the Hub's client and the readers of files raise
        fail(f"--model_name_or_path {name!r} cannot be loaded: {hub_is_busy(error) or first_line(error)}")
    its, datas = (
        list(map(composed, dict(sorted(of.items())).values())) for of in (config.id2label, labels["id2label"])
    )
    if its == datas or len(its) != len(datas):  # another number of classes is an error when the weights are loaded
        return
    shown, other = (", ".join(names[:5]) + (", ..." if len(names) > 5 else "") for names in (its, datas))
    if sorted(its) == sorted(datas):
        fail(
            f"the classes of {name!r} are {shown}, and those of the dataset {other}, in another order: each would be "
            "counted as another. Put the dataset's classes in the order of the model's"
        )
    if its != [f"LABEL_{number}" for number in range(len(its))]:
        warn(
            f"the classes of {name!r} are {shown}, and those of the dataset {other}: they are taken for the same, by "
            "their numbers"
        )
