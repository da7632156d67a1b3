"""Image folders: the class of an image is the first folder below --train_dir or --validation_dir."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import datasets
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from errors.fail import fail, warn
from errors.listing import counted, some
from PIL import Image, UnidentifiedImageError

from .arguments import DataArguments
from .labels import composed, look_alike

SUFFIXES = frozenset(ImageFolder.EXTENSIONS)
# What systems leave in folders, beside names with a dot in front.
LITTER = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
TRAIN_NAMES = ("train", "training")
EVAL_NAMES = ("validation", "valid", "val", "test", "testing", "eval", "dev")
# A stream shuffles whole parts, and then within its buffer. The files lie sorted by class, so the parts are small.
STREAM_PARTS = 1024


@dataclass
class ImageFolders:
    """What lies below the folder that an option names.

    Attributes:
        option: `--train_dir`, `--validation_dir` or `--dataset_name`.
        root: that folder.
        classes: names of the folders in it.
        images: paths of the images below it, from there and in order.
        others: paths of the files in the folders that are no images to Pillow, likewise.
    """

    option: str
    root: str
    classes: list[str]
    images: list[str]
    others: list[str]

    @classmethod
    def read(cls, option: str, root: str) -> "ImageFolders":
        """List the images. Links are followed; what has a name with a dot in front is left out."""
        classes, images, others = [], [], []
        try:
            for folder, names, files in os.walk(root, followlinks=True, onerror=_raise):
                real = os.path.realpath(folder)
                names[:] = [name for name in names if not name.startswith(".") and not _leads_up(folder, name, real)]
                below = os.path.relpath(folder, root).replace(os.sep, "/")
                if below == ".":
                    below, classes = "", sorted(set(map(composed, names)))
                for name in files:
                    path = f"{below}/{name}".lstrip("/")
                    if name.startswith(".") or name.lower() in LITTER:
                        continue
                    if os.path.splitext(name)[1].lower() in SUFFIXES or _is_image(os.path.join(folder, name)):
                        path.encode()
                        images.append(path)
                    elif not os.path.exists(os.path.join(folder, name)):
                        fail(f"{option} {root!r}: {path!r} is a link to nothing")
                    elif below:
                        others.append(os.fsencode(path).decode(errors="replace"))
        except OSError as error:
            fail(f"{option} {root!r}: cannot read {error.filename!r}: {error.strerror}")
        except UnicodeEncodeError:
            fail(f"{option} {root!r}: the name {path!r} is not UTF-8; rename the file or its folder")
        return cls(option, root, classes, sorted(images), sorted(others))

    @property
    def folders(self) -> list[str]:
        """The folders in which the images lie, in order."""
        return sorted({os.path.dirname(path) for path in self.images})

    def refuse(self, problem: str) -> NoReturn:
        fail(f"{self.option} {self.root!r} {problem}")

    def check(self) -> None:
        """End the run with one line unless there is one folder for each class, with nothing but images in it."""
        kinds = [
            [name for word in words for name in self.classes if name.lower() == word]
            for words in (TRAIN_NAMES, EVAL_NAMES)
        ]
        if all(kinds) or (self.classes and len(kinds[0]) + len(kinds[1]) == len(self.classes)):
            named = zip(("--train_dir", "--validation_dir"), kinds, strict=True)
            instead = " and ".join(f"{option} {os.path.join(self.root, found[0])}" for option, found in named if found)
            self.refuse(f"holds splits ({', '.join(kinds[0] + kinds[1])}), not classes: pass {instead}")
        if not self.images:
            but = f", but {counted(self.others, 'other file')}" if self.others else ""
            self.refuse(f"holds no images{but}; it must hold one folder of images for each class")
        stray = [path for path in self.images if "/" not in path]
        if stray and len(stray) == len(self.images):
            metadata = any(os.path.exists(os.path.join(self.root, name)) for name in ImageFolder.METADATA_FILENAMES)
            hint = ", or pass --dataset_name for a folder with a metadata file" if metadata else ""
            self.refuse(
                f"holds {counted(stray, 'image')} without a folder for their class: "
                f"put the images of each class into a folder of its own{hint}"
            )
        if stray:
            self.refuse(
                f"holds {counted(stray, 'image')} beside the class folders, and so without a class: "
                "move each into the folder of its class, or away"
            )
        deep = [path for path in self.images if path.count("/") > 1]
        if deep:
            folders = [folder for folder in self.folders if "/" in folder]
            self.refuse(
                f"holds images in folders within a class folder ({some(folders)}): the class is the first folder, "
                "so move the images up into it, or pass a folder that holds one folder for each class"
            )

    def check_classes(self) -> None:
        """End the run with one line where there is but one class, or a class to train on without images."""
        filled = {class_of(path) for path in self.images}
        empty = [name for name in self.classes if name not in filled]
        if empty and self.option == "--train_dir":
            but = f"; Pillow cannot read {counted(self.others, 'file')}" if self.others else ""
            self.refuse(f"holds folders without images ({some(empty)}): remove or fill them{but}")
        if len(self.classes) == 1:
            self.refuse(f"holds one class only ({self.classes[0]}): it must hold a folder for each of two or more")

    def check_classes_against(self, train: "ImageFolders") -> None:
        """End the run with one line where the classes are not those of `train`; they may be without images."""
        unknown = sorted(set(self.classes) - set(train.classes))
        missing = sorted(set(train.classes) - set(self.classes))
        parts = []
        if unknown:
            parts.append(f"it has {some(unknown)}, which {train.option} lacks")
        if missing:
            parts.append(f"it lacks {some(missing)}; an empty folder says that a class has no images here")
        alike = look_alike([*missing, *unknown])
        if alike:
            parts.append(f"only spaces or capitals distinguish {some(alike)}")
        if parts:
            self.refuse(f"must hold the classes of {train.option}: {'; '.join(parts)}")

    def dataset(self, classes: list[str]) -> datasets.Dataset:
        """The images with their labels, still encoded; `classes` gives the numbers."""
        numbers = {name: number for number, name in enumerate(classes)}
        root = Path(self.root).absolute()
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)})
        rows = {
            "image": [str(root / path) for path in self.images],
            "label": [numbers[class_of(path)] for path in self.images],
        }
        return datasets.Dataset.from_dict(rows, features=features)


def class_of(path: str) -> str:
    """The class of an image at `path`: the name of the first folder."""
    return composed(path.partition("/")[0])


def load_folders(args: DataArguments) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """The images in --train_dir and --validation_dir, as splits of a dataset."""
    named = {"train": args.train_dir, "validation": args.validation_dir}
    folders = {split: ImageFolders.read(f"--{split}_dir", root) for split, root in named.items() if root is not None}
    for found in folders.values():
        found.check()
    first, *others = folders.values()
    first.check_classes()
    for other in others:
        other.check_classes_against(first)
    for found in folders.values():
        if found.others:
            left_out = f"{found.option} {found.root!r}: left out {counted(found.others, 'file')}"
            warn(f"{left_out}, which Pillow cannot read as images: convert those that are some")
    splits = datasets.DatasetDict({split: found.dataset(first.classes) for split, found in folders.items()})
    if not args.streaming:
        return splits
    for split, limit in (("train", args.max_train_samples), ("validation", args.max_eval_samples)):
        if limit is not None and split in splits:
            # The first images of a folder are all of one class.
            some = range(min(limit, len(splits[split])))
            splits[split] = splits[split].shuffle(seed=42).select(some).flatten_indices()
    return datasets.IterableDatasetDict(
        {split: rows.to_iterable_dataset(min(len(rows), STREAM_PARTS)) for split, rows in splits.items()}
    )


def check_local_folder(name: str, splits: datasets.DatasetDict | datasets.IterableDatasetDict) -> None:
    """End the run with one line where `datasets` took other folders of the local dataset `name` for the classes."""
    first = next(iter(splits.values()))
    label = (first.features or {}).get("label")
    root = Path(name).expanduser()
    if not root.is_dir() or first.info.builder_name != "imagefolder" or not isinstance(label, datasets.ClassLabel):
        return
    found = ImageFolders.read("--dataset_name", str(root))
    instead = "pass the folder of the class folders as --train_dir"
    no_class = {*TRAIN_NAMES, *EVAL_NAMES, "data"}
    parts = {
        path: [part for part in path.split("/") if part and part.lower() not in no_class] for path in found.folders
    }
    deep = [path for path in found.folders if len(parts[path]) > 1]
    if deep:
        found.refuse(f"holds images in folders within a class folder ({some(deep)}): {instead}")
    classes = set(map(composed, label.names))
    lost = [path for path in found.folders if parts[path] and composed(parts[path][0]) not in classes]
    if lost:
        found.refuse(f"holds folders that `datasets` leaves out, as it does links ({some(lost)}): {instead}")
    unread = [path for path in found.images if os.path.splitext(path)[1].lower() not in SUFFIXES]
    unread += [path for path in found.others if os.path.basename(path) not in ImageFolder.METADATA_FILENAMES]
    if unread:
        warn(f"--dataset_name {name!r}: `datasets` leaves out {counted(unread, 'file')}, for the end of their names")


def _raise(error: OSError) -> NoReturn:
    raise error


def _leads_up(folder: str, name: str, real: str) -> bool:
    """Whether the folder `name` in `folder`, which is `real` in truth, is a link back to what holds it."""
    path = os.path.join(folder, name)
    return os.path.islink(path) and os.path.commonpath([os.path.realpath(path), real]) == os.path.realpath(path)


def _is_image(path: str) -> bool:
    """Whether Pillow takes the file for an image, whatever its name. Formats without a signature are not tried."""
    if not os.path.isfile(path):
        return False
    Image.init()
    try:
        Image.open(path, formats=[name for name, (_, accept) in Image.OPEN.items() if accept is not None]).close()
    except UnidentifiedImageError:
        return False
    except Image.DecompressionBombError:
        pass  # decoding it will say so
    return True
