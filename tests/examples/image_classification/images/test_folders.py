"""Folders of images: which are trained on, with which classes, and which are refused."""

import json
import os

import datasets
import pytest
from PIL import Image

TINY = ["--model_type", "cifar_resnet", "--config_overrides", "depths=[1],hidden_sizes=[8]", "--image_size", 16]
TRAIN = ["--do_train", *TINY, "--per_device_train_batch_size", 8, "--max_steps", 1, "--train_dir"]
STREAM = ["--streaming", "--shuffle_buffer", 10]


def write(root, *names, count=2):
    """Images of random colours in the folders `names` of `root`."""
    for place, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", (16, 16), (number, 40 * place, 0)).save(root / name / f"{number}.png")
    return root


def classes_of(result):
    assert result.status == 0, result.output
    return list(json.loads((result.folder / "config.json").read_text())["id2label"].values())


# Folders with images, and words of the answer.
REFUSED = {
    "folders in a class": (["cat/indoor", "cat/outdoor", "dog/indoor"], ["cat/indoor, cat/outdoor, dog/indoor"]),
    "folder in one of the classes": (["cat", "dog", "dog/puppies"], ["dog/puppies", "the class is the first folder"]),
    "class folders one level down": (["photos/cat", "photos/dog"], ["photos/cat, photos/dog", "pass a folder that"]),
    "splits": (["train/cat", "train/dog", "val/cat"], ["(train, val)", "images/train and --validation_dir", "s/val"]),
    "splits in capitals": (["Train/cat", "Test/cat"], ["(Train, Test)", "images/Train and --validation_dir"]),
    "three splits": (["train/a", "test/a", "validation/a"], ["(train, validation, test)", "images/validation"]),
    "the training split alone": (["train/cat", "train/dog"], ["(train)", "pass --train_dir"]),
    "splits beside another folder": (["train/cat", "valid/cat", "more/cat"], ["(train, valid)", "images/valid"]),
    "no class folders": (["."], ["holds 2 images (0.png, 1.png) without a folder", "a folder of its own"]),
    "stray images": (["cat", "dog", "."], ["holds 2 images (0.png, 1.png) beside the class folders"]),
    "one class": (["cat"], ["one class only (cat)", "two or more"]),
    "no images": ([], ["holds no images", "one folder of images for each class"]),
}


@pytest.mark.parametrize("flags", [[], STREAM], ids=["loaded", "streamed"])
@pytest.mark.parametrize("case", REFUSED)
def test_folder_whose_classes_are_not_plain_is_refused(run_example, tmp_path, case, flags):
    names, words = REFUSED[case]
    (tmp_path / "images").mkdir()
    answer = run_example(*TRAIN, write(tmp_path / "images", *names), *flags).answer
    assert "--train_dir" in answer
    assert all(word in answer for word in words), answer


def test_class_named_as_a_split_is_a_class(run_example, tmp_path):
    assert classes_of(run_example(*TRAIN, write(tmp_path / "images", "bus", "car", "train"))) == [
        "bus",
        "car",
        "train",
    ]


def test_class_without_images_is_refused(run_example, tmp_path):
    (write(tmp_path / "images", "cat", "dog") / "bird").mkdir()
    assert "folders without images (bird)" in run_example(*TRAIN, tmp_path / "images").answer
    (tmp_path / "images/bird/photo.heic").write_bytes(b"of a kind that is not read")
    answer = run_example(*TRAIN, tmp_path / "images").answer
    assert "folders without images (bird): remove or fill them; Pillow cannot read 1 file (bird/photo.heic)" in answer


@pytest.mark.parametrize("flags", [[], STREAM], ids=["loaded", "streamed"])
def test_files_are_read_whatever_their_names_and_those_that_are_no_images_are_named(run_example, odd_photos, flags):
    result = run_example(*TRAIN, odd_photos, *flags)
    assert classes_of(result) == ["caf\u00e9", "dog", "newt"]
    (line,) = [line for line in result.output.splitlines() if "left out" in line]
    assert "left out 2 files (dog/live.heic, dog/notes.txt), which Pillow cannot read as images" in line
    held_out = 0 if flags else 4  # of 21, as the newt has one image only
    assert f"looked at {22 - held_out} " in result.output


def test_text_and_the_like_are_no_images_and_a_pipe_is_not_waited_for(example, tmp_path):
    from images.folders import ImageFolders

    root = write(tmp_path / "images", "cat", "dog")
    contents = [b"", b"plain text", b"%PDF-1.4", b"PK\x03\x04", b"<svg/>", b"\x93NUMPY", b"{}", bytes(2000)]
    for number, content in enumerate(contents):
        (root / f"cat/file{number}").write_bytes(content)
    os.mkfifo(root / "dog/pipe")
    found = ImageFolders.read("--train_dir", str(root))
    assert len(found.images) == 4
    assert len(found.others) == len(contents) + 1


def test_flat_folder_with_a_metadata_file_is_sent_to_dataset_name(run_example, tmp_path):
    root = write(tmp_path / "images", ".")
    (root / "metadata.csv").write_text("file_name,label\n0.png,cat\n1.png,dog\n")
    assert "pass --dataset_name" in run_example(*TRAIN, root).answer


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["cat", "dog", "wolf"], ["it has wolf, which --train_dir lacks"]),
        (["dog"], ["it lacks cat; an empty folder says"]),
        (
            ["Cat", "dog"],
            ["it has Cat, which", "it lacks cat;", "capitals distinguish 'cat' and 'Cat'"],
        ),
        (["cat ", "dog"], ["only spaces or capitals distinguish 'cat' and 'cat '"]),
        (["val/cat", "val/dog"], ["(val)", "pass --validation_dir", "val/val"]),
        (["cat", "dog/old"], ["dog/old"]),
    ],
)
def test_classes_to_evaluate_on_are_those_of_training(run_example, tmp_path, names, words):
    folders = write(tmp_path / "train", "cat", "dog"), write(tmp_path / "val", *names)
    answer = run_example(*TRAIN, folders[0], "--validation_dir", folders[1], "--do_eval").answer
    assert "--validation_dir" in answer
    assert all(word in answer for word in words), answer


def test_empty_folder_says_that_a_class_is_not_evaluated_on(run_example, tmp_path):
    folders = write(tmp_path / "train", "cat", "dog"), write(tmp_path / "val", "dog")
    (folders[1] / "cat").mkdir()
    result = run_example(*TRAIN, folders[0], "--validation_dir", folders[1], "--do_eval")
    assert classes_of(result) == ["cat", "dog"]


@pytest.mark.parametrize("flags", [[], STREAM], ids=["loaded", "streamed"])
@pytest.mark.parametrize("linked", [["cat"], ["cat", "dog"]], ids=["one of two", "both"])
def test_class_folders_may_be_links(run_example, tmp_path, linked, flags):
    root = write(tmp_path / "images", *{"cat", "dog"} - set(linked), "bird")
    for name in linked:
        os.symlink(write(tmp_path / "elsewhere", name) / name, root / name)
    os.symlink(root, root / "bird/back")  # a circle
    result = run_example(*TRAIN, root, *flags)
    assert classes_of(result) == ["bird", "cat", "dog"]
    assert flags or "6 images" in result.output or "5 images" in result.output


def test_class_folders_of_one_name_in_two_spellings_are_one_class(run_example, tmp_path):
    one, other = "caf\u00e9", "cafe\u0301"
    folders = write(tmp_path / "train", one, "dog"), write(tmp_path / "val", other, "dog")
    result = run_example(*TRAIN, folders[0], "--validation_dir", folders[1], "--do_eval")
    assert classes_of(result) == [one, "dog"]
    trained = ["--do_eval", "--model_name_or_path", result.folder, "--validation_dir", folders[1]]
    evaluated = run_example(*trained)
    assert evaluated.status == 0, evaluated.output
    assert "classes of" not in evaluated.output


def test_link_to_nothing_is_named(run_example, tmp_path):
    os.symlink(tmp_path / "nowhere", write(tmp_path / "images", "cat", "dog") / "bird")
    assert "'bird' is a link to nothing" in run_example(*TRAIN, tmp_path / "images").answer


@pytest.mark.parametrize("flags", [[], STREAM], ids=["loaded", "streamed"])
def test_path_is_no_pattern(run_example, tmp_path, flags):
    root = write(tmp_path / "data[v1] *?{a,b}", "cat [1]", "dog*", ".hidden")
    assert classes_of(run_example(*TRAIN, root, *flags)) == ["cat [1]", "dog*"]


def test_images_and_their_order_are_those_that_datasets_would_load(example, tmp_path):
    from images.arguments import DataArguments
    from images.folders import load_folders

    root = write(tmp_path / "images", "cat", "cat-b", "dog", ".cache", count=12)
    (root / "cat/notes.txt").write_text("no image")
    Image.new("RGB", (16, 16)).save(root / "dog/PHOTO.JPG", "JPEG")
    expected = datasets.load_dataset(
        "imagefolder", data_files={"train": f"{root}/**"}, drop_labels=False, cache_dir=str(tmp_path / "cache")
    )["train"]
    for streaming in (False, True):
        found = load_folders(DataArguments(train_dir=str(root), streaming=streaming))["train"]
        assert found.features == expected.features
        encoded = (data.cast_column("image", datasets.Image(decode=False)) for data in (found, expected))
        one, other = ([(row["image"]["path"], row["label"]) for row in data] for data in encoded)
        assert one == other


LOCAL = [*TRAIN[:-1], "--dataset_name"]


@pytest.mark.parametrize("flags", [[], STREAM], ids=["loaded", "streamed"])
def test_local_dataset_of_image_folders_has_the_first_folders_as_classes(run_example, tmp_path, flags):
    plain = write(tmp_path / "plain", "train/cat", "train/dog", "test/cat", "test/dog")
    assert classes_of(run_example(*LOCAL, plain, *flags)) == ["cat", "dog"]
    deep = write(tmp_path / "deep", "cat/indoor", "cat/outdoor", "dog/indoor")
    answer = run_example(*LOCAL, deep, *flags).answer
    assert "(cat/indoor, cat/outdoor, dog/indoor): pass" in answer
    linked = write(tmp_path / "linked", "cat", "dog")
    os.symlink(write(tmp_path / "elsewhere", "bird") / "bird", linked / "bird")
    assert "(bird): pass the folder of the class folders as --train_dir" in run_example(*LOCAL, linked, *flags).answer


def test_files_that_datasets_leaves_out_of_a_local_dataset_are_named(run_example, tmp_path):
    root = write(tmp_path / "plain", "train/cat", "train/dog")
    (root / "README.md").write_text("of no class")
    Image.new("RGB", (16, 16)).save(root / "train/cat/photo.jpg_large", "JPEG")
    (root / "train/dog/photo.heic").write_bytes(b"of a kind that is not read")
    result = run_example(*LOCAL, root)
    assert classes_of(result) == ["cat", "dog"]
    assert "`datasets` leaves out 2 files (train/cat/photo.jpg_large, train/dog/photo.heic)" in result.output


def test_some_images_of_a_streamed_folder_are_of_all_classes(example, tmp_path):
    from images.arguments import DataArguments
    from images.folders import load_folders

    root = write(tmp_path / "images", "cat", "dog", count=12)
    data = load_folders(DataArguments(train_dir=str(root), streaming=True, max_train_samples=10))["train"]
    labels = [row["label"] for row in data]
    assert len(labels) == 10
    assert set(labels) == {0, 1}
