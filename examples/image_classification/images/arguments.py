"""The flags that say which images there are, and what is done to them."""

from dataclasses import dataclass, field
from pathlib import Path

from errors.fail import fail
from errors.nearest import did_you_mean

# Images of up to so many pixels a side are small: a model from scratch sees them as they are.
SMALL_SIDE = 64
AUGMENTATIONS = ("auto", "none", "shift", "shift_flip", "resized_crop_flip")


@dataclass
class DataArguments:
    """Which images, and what is done to them."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub name, or local folder that `load_dataset` reads. Default: the digits."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    train_dir: str | None = field(default=None, metadata={"help": "Training images, one folder per class."})
    validation_dir: str | None = field(default=None, metadata={"help": "Evaluation images, one folder per class."})
    train_split_name: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split_name: str | None = field(
        default=None,
        metadata={"help": "Split to evaluate on. Default: validation, or test, or a part of the training split."},
    )
    train_val_split: float = field(
        default=0.15, metadata={"help": "Share of the training split held out where there is no split to evaluate on."}
    )
    image_column_name: str | None = field(default=None, metadata={"help": "Default: the only column of images."})
    label_column_name: str | None = field(default=None, metadata={"help": "Default: the only column of labels."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on so many at most, at random."})
    max_eval_samples: int | None = field(
        default=None,
        metadata={
            "help": "Evaluate on so many at most, at random: of a stream, of its first --shuffle_buffer images."
        },
    )
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Side of the square that a from-scratch model sees. Default: the images' own up to 64, else 224."
        },
    )
    augmentation: str = field(
        default="auto",
        metadata={
            "help": f"One of {', '.join(AUGMENTATIONS)}. A shift is by up to an eighth of the side; shift alone "
            "leaves half of the images as they are. auto: up to 64 pixels shift for grey images, as they may be "
            "digits or letters, and shift_flip for others; then resized_crop_flip."
        },
    )
    on_bad_image: str = field(
        default="error",
        metadata={
            "help": "error, or skip: leave out the images that cannot be decoded, and tell their number in the log "
            "and on the model card. skip decodes all images once before training."
        },
    )
    image_cache_mb: int = field(
        default=2048,
        metadata={
            "help": "Decode the images of a split once, into at most this many megabytes in each process (CIFAR-10: "
            "150), where all end up at one size. A split that needs more is decoded anew in each epoch; 0 always does."
        },
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read the images as they are needed, and download none beforehand; needs --max_steps. A resumed "
            "run reads the stream again up to where it was, and then goes on exactly."
        },
    )
    shuffle_buffer: int = field(
        default=5000,
        metadata={
            "help": "From how many still encoded images --streaming draws the next one at random (ImageNet: 0.1 MB "
            "each); the order of the files is shuffled too."
        },
    )

    @property
    def is_digits(self) -> bool:
        return self.dataset_name is None and self.train_dir is None and self.validation_dir is None

    def check(self) -> None:
        if self.dataset_name and (self.train_dir or self.validation_dir):
            fail("--dataset_name and --train_dir/--validation_dir exclude each other: pass one of them")
        for name in ("train_dir", "validation_dir"):
            folder = getattr(self, name)
            if folder is not None and not Path(folder).is_dir():
                fail(f"--{name} {folder!r}: no such folder; it must hold one folder of images for each class")
        for name in ("max_train_samples", "max_eval_samples", "image_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                fail(f"--{name} must be at least 1, not {value}")
        if not 0 < self.train_val_split < 1:
            fail(f"--train_val_split must be between 0 and 1, not {self.train_val_split}")
        if self.image_cache_mb < 0:
            fail(f"--image_cache_mb must be at least 0, not {self.image_cache_mb}")
        if self.shuffle_buffer < 1:
            fail(f"--shuffle_buffer must be at least 1, not {self.shuffle_buffer}")
        if self.streaming and self.is_digits:
            fail("--streaming needs --dataset_name or --train_dir")
        if self.on_bad_image not in ("error", "skip"):
            guess = did_you_mean(self.on_bad_image, ("error", "skip"))
            fail(f"--on_bad_image must be error or skip, not {self.on_bad_image!r}{guess and '.'}{guess}")
        if self.streaming and self.on_bad_image == "skip":
            fail("--on_bad_image skip decodes all images beforehand, so it cannot go with --streaming")
        if self.augmentation not in AUGMENTATIONS:
            guess = did_you_mean(self.augmentation, AUGMENTATIONS)
            names = ", ".join(AUGMENTATIONS)
            fail(f"--augmentation must be one of {names}, not {self.augmentation!r}{guess and '.'}{guess}")
