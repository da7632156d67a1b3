"""What both scripts do before training: load the images, make the model, turn the images into its input."""

from dataclasses import dataclass, replace
from typing import Any

import datasets
import torch
from bad_images import without_bad_images
from cached_images import prepare_images
from errors.fail import fail
from image_columns import find_columns, with_class_labels
from image_data import DataArguments, ImageDataset, choose_splits, first_images, load_splits
from image_folders import check_local_folder, load_folders
from lazy_deepspeed import import_deepspeed_only_where_used
from models.loading import SMALL_SIDE, ModelArguments, check_classes, from_scratch, pretrained
from PIL import Image
from streamed_images import Stream, StreamedImages, choose_streams


@dataclass(frozen=True)
class Images:
    """A dataset, and what is trained and evaluated on.

    Attributes:
        splits: all splits of the dataset, by name.
        train: the images to train on; None where none are asked for.
        evaluation: the images to evaluate on, likewise.
        columns: names of the column of images and of the column of labels.
        classes: names of the classes.
        sample: the first few images to train on, or to evaluate on where there are none to train on.
        left_out: how many images to train and to evaluate on cannot be decoded and are left out; None: not examined.
    """

    splits: Any
    train: datasets.Dataset | Stream | None
    evaluation: datasets.Dataset | Stream | None
    columns: tuple[str, str]
    classes: list[str]
    sample: list[Image.Image]
    left_out: tuple[int, int] | None = None

    @property
    def are_grey(self) -> bool:
        """Whether the first images are grey, be it in three like channels."""
        return all(
            red.tobytes() == green.tobytes() == blue.tobytes()
            for red, green, blue in (image.convert("RGB").split() for image in self.sample)
        )

    @property
    def are_small(self) -> bool:
        return all(min(image.size) <= SMALL_SIDE for image in self.sample)

    @property
    def labels(self) -> dict[str, Any]:
        """The classes as the config of a model names them."""
        numbered = dict(enumerate(self.classes))
        return {"id2label": numbered, "label2id": {name: number for number, name in numbered.items()}}


def settle(data_args: DataArguments, quiet: bool) -> None:
    """Change settings of the whole process: one thread for the digits; no progress bars where `quiet`."""
    import_deepspeed_only_where_used()
    if quiet or data_args.is_digits:
        datasets.disable_progress_bars()
    if data_args.is_digits:
        torch.set_num_threads(1)  # in layers this small, threads wait for each other longer than they compute


def load_images(data_args: DataArguments, cache_dir: str | None, do_train: bool, do_eval: bool) -> Images:
    """The images that `data_args` names."""
    splits: Any
    if data_args.dataset_name is None and not data_args.is_digits:
        splits = load_folders(data_args)
    else:
        splits = load_splits(data_args, cache_dir)
    if data_args.dataset_name is not None:
        check_local_folder(data_args.dataset_name, splits)
    columns = find_columns(next(iter(splits.values())), data_args)
    splits = splits.cast_column(columns[0], datasets.Image())  # one with a mode would convert the images unasked
    train: datasets.Dataset | Stream | None
    evaluation: datasets.Dataset | Stream | None
    if data_args.streaming:
        train, evaluation = choose_streams(splits, data_args, columns, do_train, do_eval)
    else:
        splits = with_class_labels(splits, columns[1])
        train, evaluation = choose_splits(splits, data_args, columns[1], do_train, do_eval)
    skip_bad = data_args.on_bad_image == "skip"
    # Of both, so that images to evaluate on that cannot be used are told before training.
    samples = [first_images(data, columns[0], skip_bad) for data in (train, evaluation) if data is not None]
    some = train if train is not None else evaluation
    assert some is not None
    classes = some.features[columns[1]].names
    if len(classes) < 2:
        fail(f"the label column {columns[1]!r} has one class only ({', '.join(classes)}): there must be two or more")
    return Images(splits, train, evaluation, columns, classes, samples[0])


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
    return replace(images, train=kept[0], evaluation=kept[1], left_out=(left_out[0], left_out[1]))


def load_model(
    model_args: ModelArguments, data_args: DataArguments, images: Images, do_train: bool = True
) -> tuple[Any, Any]:
    """The model that `model_args` names, for the classes of `images`, and its image processor."""
    if model_args.model_name_or_path is not None:
        if not do_train:
            check_classes(model_args, images.labels)
        return pretrained(model_args, images.labels)
    return from_scratch(model_args, data_args, images.sample, images.labels)


def choose_augmentation(data_args: DataArguments, processor: Any, images: Images) -> str:
    """The kind of random views that --augmentation means."""
    if data_args.augmentation != "auto":
        return data_args.augmentation
    small = processor.size.get("height", processor.size.get("shortest_edge", 224)) <= SMALL_SIDE
    if data_args.is_digits or (images.are_grey and (small or images.are_small)):
        return "shift"  # these may be digits or letters, which a mirror makes wrong
    return "shift_flip" if small else "resized_crop_flip"


def augmentation_line(data_args: DataArguments, augmentation: str) -> str:
    chosen = " (chosen by auto; for another: --augmentation)" if data_args.augmentation == "auto" else ""
    return f"augmentation: {augmentation}{chosen}"


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
