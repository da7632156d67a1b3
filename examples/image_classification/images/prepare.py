"""What both scripts do with the images: load them, leave out bad ones, and turn them into the input of a model."""

import os
from dataclasses import dataclass, replace
from typing import Any

import datasets
from datasets import IterableDataset as Stream
from errors.fail import fail

from .arguments import SMALL_SIDE, DataArguments
from .decoding import BadData, without_bad_images
from .inputs import ImageDataset, StreamedImages, prepare_images
from .labels import check_labels, composed, warn_of_like_names, with_class_labels
from .sample import UNSEEN, Sample, look_at
from .sources import find_columns, load_splits
from .splits import (
    choose_splits,
    choose_streams,
    evaluation_split,
    splits_in_use,
    warn_of_classes_never_trained_on,
)
from .views import Views


@dataclass(frozen=True)
class Images:
    """A dataset, and what is trained and evaluated on.

    Attributes:
        evaluation_split: name of the split to evaluate on; None where images of the training split are held out.
        train: the images to train on; None where none are requested.
        evaluation: the images to evaluate on, likewise.
        columns: names of the column of images and of the column of labels.
        classes: names of the classes.
        sample: what the images to train on are like, or those to evaluate on where there are none to train on.
        left_out: how many images to train and to evaluate on cannot be decoded and are left out; None: not examined.
    """

    evaluation_split: str | None
    train: datasets.Dataset | Stream | None
    evaluation: datasets.Dataset | Stream | None
    columns: tuple[str, str]
    classes: list[str]
    sample: Sample = UNSEEN
    left_out: tuple[int, int] | None = None

    @property
    def labels(self) -> dict[str, Any]:
        """The classes as the config of a model names them."""
        numbered = dict(enumerate(self.classes))
        return {"id2label": numbered, "label2id": {name: number for number, name in numbered.items()}}


def load_images(data_args: DataArguments, cache_dir: str | None, do_train: bool, do_eval: bool) -> Images:
    """The images that `data_args` names."""
    splits = load_splits(data_args, cache_dir)
    columns = find_columns(next(iter(splits.values())), data_args)
    splits = splits.cast_column(columns[0], datasets.Image())  # one with a mode would convert the images
    eval_name = evaluation_split(splits, data_args)
    train: datasets.Dataset | Stream | None
    evaluation: datasets.Dataset | Stream | None
    if data_args.streaming:
        train, evaluation = choose_streams(splits, data_args, columns[1], do_train, do_eval)
    else:
        used = splits_in_use(splits, data_args, columns[1], do_train, do_eval)
        for name, option in used.items():
            check_labels(splits[name], columns[1], f"{option} {name!r}")
        labelled = with_class_labels({name: splits[name] for name in used}, columns[1])
        train, evaluation = choose_splits(labelled, eval_name, data_args, columns[1], do_train, do_eval)
        if train is not None and evaluation is not None:
            warn_of_classes_never_trained_on(train, evaluation, columns[1])
    some = train if train is not None else evaluation
    assert some is not None
    classes = list(map(composed, some.features[columns[1]].names))
    if len(classes) < 2:
        fail(f"the label column {columns[1]!r} has one class only ({', '.join(classes)}): there must be two or more")
    warn_of_like_names(classes)
    images = Images(eval_name, train, evaluation, columns, classes)
    return images if data_args.on_bad_image == "skip" else with_sample(images)


def with_sample(images: Images) -> Images:
    try:  # both, so that a bad image to evaluate on is reported before training
        both = [look_at(data, images.columns[0]) for data in (images.train, images.evaluation) if data is not None]
    except BadData as error:  # all processes look at the same images
        fail(error.line, anywhere=os.environ.get("LOCAL_RANK", "0") == "0")
    return replace(images, sample=both[0])


def leave_out_bad(images: Images, data_args: DataArguments) -> Images:
    """`images` as --on_bad_image says. All processes must call this together."""
    if data_args.on_bad_image != "skip":
        return images
    kept, left_out = [], []
    for data, purpose in ((images.train, "train"), (images.evaluation, "evaluate")):
        good, bad = data, 0
        if isinstance(data, datasets.Dataset):
            good, bad = without_bad_images(data, images.columns[0], purpose)
        kept.append(good)
        left_out.append(bad)
    return with_sample(replace(images, train=kept[0], evaluation=kept[1], left_out=(left_out[0], left_out[1])))


def choose_augmentation(data_args: DataArguments, processor: Any, images: Images) -> str:
    """The kind of random views that --augmentation means."""
    if data_args.augmentation != "auto":
        return data_args.augmentation
    small = processor.size.get("height", processor.size.get("shortest_edge", 224)) <= SMALL_SIDE
    if data_args.is_digits or (images.sample.are_grey and (small or images.sample.are_small)):
        return "shift"  # these may be digits or letters, which a mirror makes wrong
    return "shift_flip" if small else "resized_crop_flip"


def chosen_lines(images: Images, processor: Any, data_args: DataArguments, augmentation: str) -> str:
    """What the model sees, and from how many images that was chosen."""
    views = Views(processor, "RGB", "none")
    mean, std = (
        " ".join(f"{value:g}" for value in dict.fromkeys(getattr(processor, name) or ()))
        for name in ("image_mean", "image_std")
    )
    chosen = " (chosen by auto; for another: --augmentation)" if data_args.augmentation == "auto" else ""
    return (
        f"input: {views.height} x {views.width} pixels, mean {mean}, deviation {std} ({images.sample})\n"
        f"augmentation: {augmentation}{chosen}"
    )


def for_model(
    images: Images, model: Any, processor: Any, augmentation: str, seed: int, data_args: DataArguments
) -> tuple[ImageDataset | StreamedImages | None, ImageDataset | StreamedImages | None]:
    """The input of `model`: the images to train on as random views, and those to evaluate on as they are."""
    mode = "L" if getattr(model.config, "num_channels", 3) == 1 else "RGB"

    def ready(data: datasets.Dataset | Stream | None, kind: str) -> ImageDataset | StreamedImages | None:
        if data is None:
            return None
        options = (data, images.columns, processor, mode, kind, seed)
        if isinstance(data, Stream):
            return StreamedImages(*options, data_args.shuffle_buffer if data is images.train else None)
        return prepare_images(*options, data_args.image_cache_mb)

    return ready(images.train, augmentation), ready(images.evaluation, "none")
