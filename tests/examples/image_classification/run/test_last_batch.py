"""A last batch of one image, which batch norm cannot be trained on; and evaluations leave no image out."""

import json

import pytest
from PIL import Image

# Its last feature map is one pixel.
RESNET = ["--model_type", "resnet", "--config_overrides"]
RESNET += ["embedding_size=8,depths=[1,1,1,1],hidden_sizes=[8,8,8,8],layer_type=basic"]
TRAIN = ["--do_train", *RESNET, "--num_train_epochs", 1, "--per_device_train_batch_size"]


@pytest.fixture(scope="module")
def seventeen(tmp_path_factory):
    """Seventeen images of two classes."""
    root = tmp_path_factory.mktemp("seventeen")
    for name, count in (("a", 9), ("b", 8)):
        (root / name).mkdir()
        for number in range(count):
            Image.new("RGB", (16, 16), (number, 20 * count, 0)).save(root / name / f"{number}.png")
    return root


def steps(result):
    assert result.status == 0, result.output
    return json.loads((result.folder / "trainer_state.json").read_text())["global_step"]


def test_a_last_batch_of_one_image_is_left_out_and_that_is_said(run_example, seventeen):
    result = run_example(*TRAIN, 8, "--train_dir", seventeen, "--validation_dir", seventeen)
    assert steps(result) == 2
    (line,) = [line for line in result.output.splitlines() if line.startswith("warning: the last batch of each epoch")]
    assert "of one image, is left out" in line


def test_batches_of_one_image_are_refused_before_training(run_example, seventeen):
    answer = run_example(*TRAIN, 1, "--train_dir", seventeen).answer
    assert "cannot be trained on one image at a time" in answer
    assert "Pass --per_device_train_batch_size 2 or more" in answer


def test_a_model_that_can_be_trained_on_one_image_is_and_evaluations_are_whole(run_example, seventeen):
    vit = ["--model_type", "vit", "--config_overrides"]
    vit += ["hidden_size=12,intermediate_size=12,num_hidden_layers=1,num_attention_heads=3"]
    flags = [*TRAIN, 8, *vit, "--train_dir", seventeen, "--do_eval", "--validation_dir", seventeen]
    result = run_example(*flags)
    assert steps(result) == 3
    assert "left out" not in result.output
    dropped = run_example(*flags, "--dataloader_drop_last", "--per_device_eval_batch_size", 16)
    assert steps(dropped) == 2
    accuracy = json.loads((dropped.folder / "all_results.json").read_text())["eval_accuracy"]
    assert 17 * accuracy == pytest.approx(round(17 * accuracy))
    assert 16 * accuracy != pytest.approx(round(16 * accuracy))


def test_training_without_a_batch_is_refused(run_example, seventeen):
    answer = run_example(*TRAIN, 32, "--train_dir", seventeen, "--dataloader_drop_last").answer
    assert "--dataloader_drop_last leaves no batch to train on" in answer
