"""Every recipe, as it stands and run for a few steps on tiny data of its dataset's schema."""

import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from paths import IMAGE_CLASSIFICATION, ROOT
from pil_processors import ViTImageProcessorPil
from transformers import AutoConfig, AutoModelForImageClassification, ViTConfig

RECIPES = {path.stem: path for path in (IMAGE_CLASSIFICATION / "recipes").glob("*.yaml")}
DATA = Path(os.environ.get("HF_LPSGD_TEST_DATA", ROOT.parent / "shared" / "data"))

# Network, parameters, dataset, epochs or steps of each.
EXPECTED = {
    "resnet18_cifar10": ("cifar_resnet", 11_173_962, "uoft-cs/cifar10", 200),
    "resnet18_cifar100": ("cifar_resnet", 11_220_132, "uoft-cs/cifar100", 200),
    "vgg11_cifar10": ("cifar_vgg", 9_231_114, "uoft-cs/cifar10", 200),
    "vgg11_cifar100": ("cifar_vgg", 9_277_284, "uoft-cs/cifar100", 200),
    "resnet50_imagenet": ("resnet", 25_557_032, "ILSVRC/imagenet-1k", 90),
    "resnet50_imagenet_streamed": ("resnet", 25_557_032, "ILSVRC/imagenet-1k", 450_410),
    "vit_cifar10": (None, None, "uoft-cs/cifar10", 5),
    "vit_cifar100": (None, None, "uoft-cs/cifar100", 5),
    "vit_imagenet": (None, None, "ILSVRC/imagenet-1k", 5),
}
TINY = {
    "cifar_resnet": ["--config_overrides", "depths=[1,1],hidden_sizes=[8,16]"],
    "cifar_vgg": ["--config_overrides", "depths=[1,1],hidden_sizes=[8,16]"],
    "resnet": ["--config_overrides", "depths=[1,1],hidden_sizes=[16,32],embedding_size=8", "--image_size", "32"],
}
SMALL = ["--per_device_train_batch_size", "8", "--dataloader_num_workers", "0", "--dataloader_persistent_workers"]
SMALL += ["false", "--logging_steps", "1"]
CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}


@pytest.fixture(scope="module")
def tiny_vit(tmp_path_factory):
    """A pretrained model without a classifier, such as the one that the recipes name."""
    folder = tmp_path_factory.mktemp("vit")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    from transformers import ViTModel

    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=16)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def schema_of(name):
    return name.split("_")[1]


def test_all_recipes_are_expected_and_those_that_the_method_was_published_with_are_there():
    assert RECIPES.keys() == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_recipe_says_what_its_name_says(example, name):
    kind, parameters, dataset, length = EXPECTED[name]
    model_args, data_args, _, training_args, _ = example.parse_arguments([str(RECIPES[name])])
    assert data_args.dataset_name == dataset
    assert training_args.optim == "lpsgdm"
    is_the_papers = "momentum=0.9" in training_args.optim_args and "grad_rms=none" in training_args.optim_args
    assert is_the_papers == (not name.startswith("vit"))
    assert "p_schedule=cosine" in training_args.optim_args
    assert training_args.do_train
    assert training_args.do_eval
    assert length == (training_args.max_steps if data_args.streaming else training_args.num_train_epochs)
    assert Path(training_args.output_dir).name == name
    assert (data_args.label_column_name == "fine_label") == (dataset == "uoft-cs/cifar100")
    if kind is None:
        assert model_args.model_name_or_path == "google/vit-base-patch16-224-in21k"
        return
    assert model_args.model_name_or_path is None
    assert model_args.model_type == kind
    with torch.device("meta"):
        config = AutoConfig.for_model(kind, num_labels=CLASSES[schema_of(name)])
        assert AutoModelForImageClassification.from_config(config).num_parameters() == parameters
    if "cifar" in name:
        assert data_args.augmentation == "shift_flip"


def check(result, name, kind):
    assert result.status == 0, result.output
    history = json.loads((result.folder / "trainer_state.json").read_text())["log_history"]
    p = [entry["p"] for entry in history if "p" in entry]
    assert p[0] <= 20
    assert p == sorted(p, reverse=True)
    assert p[-1] < 8
    assert any("eval_accuracy" in entry for entry in history)
    config = json.loads((result.folder / "config.json").read_text())
    assert config["model_type"] == (kind or "vit")
    assert len(config["id2label"]) == CLASSES[schema_of(name)]
    code = {path.name for path in result.folder.glob("*.py")}
    assert code == ({f"{kind}.py"} if kind in ("cifar_resnet", "cifar_vgg") else set())


@pytest.mark.parametrize("name", EXPECTED)
def test_recipe_runs_on_data_of_its_schema(run_example, hub_like, tiny_vit, name):
    kind = EXPECTED[name][0]
    flags = ["--dataset_name", hub_like[schema_of(name)], *SMALL]
    flags += ["--model_name_or_path", tiny_vit] if kind is None else TINY[kind]
    steps = ["--max_steps", 6, "--eval_steps", 3, "--save_steps", 3]
    result = run_example(RECIPES[name], *flags, *(steps if "streamed" in name else ["--num_train_epochs", 2]))
    check(result, name, kind)
    counts = "a stream of images to train and a stream of" if "streamed" in name else "24 images to train and 10"
    assert f"{counts} images to evaluate in {CLASSES[schema_of(name)]} classes" in result.output
    if "epoch" in yaml.safe_load(RECIPES[name].read_text())["optim_args"]:
        history = json.loads((result.folder / "trainer_state.json").read_text())["log_history"]
        assert [entry["p"] for entry in history if "p" in entry] == [20] * 3 + [2] * 3


@pytest.mark.skipif(not (DATA / "cifar10").is_dir(), reason="CIFAR-10 is not here")
@pytest.mark.parametrize("name", ["resnet18_cifar10", "vgg11_cifar10"])
def test_cifar_recipe_runs_on_real_rows(run_example, tmp_path_factory, name):
    kind = EXPECTED[name][0]
    cache = tmp_path_factory.getbasetemp() / "cifar10"
    flags = ["--dataset_name", DATA / "cifar10", "--cache_dir", cache, *SMALL, *TINY[kind]]
    counts = ["--max_train_samples", 24, "--max_eval_samples", 10]
    result = run_example(RECIPES[name], *flags, *counts, "--num_train_epochs", 2)
    check(result, name, kind)
    assert '"airplane"' in (result.folder / "config.json").read_text()


@pytest.mark.skipif(not (DATA / "imagenet1k_sample").is_dir(), reason="the sample of ImageNet is not here")
def test_imagenet_recipe_streams_real_rows(run_example):
    flags = ["--dataset_name", DATA / "imagenet1k_sample", *SMALL, *TINY["resnet"], "--shuffle_buffer", 20]
    flags += ["--eval_split_name", "train", "--max_eval_samples", 10, "--max_steps", 6, "--eval_steps", 3]
    result = run_example(RECIPES["resnet50_imagenet_streamed"], *flags)
    check(result, "resnet50_imagenet_streamed", "resnet")


def test_flags_override_a_recipe_and_text_in_it_is_read_as_on_the_command_line(example, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("dataset_name: some/where\nlearning_rate: 1e-3\noutput_dir: here\nseed: 7\ndo_train: true\n")
    _, data_args, _, training_args, _ = example.parse_arguments(
        [str(recipe), "--seed", "8", "--num_train_epochs", "2"]
    )
    assert (training_args.learning_rate, training_args.seed, training_args.num_train_epochs) == (1e-3, 8, 2)
    assert (data_args.dataset_name, training_args.output_dir) == ("some/where", "here")
    assert training_args.do_train
    # Not the digits' defaults, as another dataset is named.
    assert training_args.per_device_train_batch_size == 8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rat: 1", ["unknown arguments: learning_rat", "--help"]),
        ("learning_rate: fast", ["learning_rate", "'fast'"]),
        ("- 1", ["must hold one object"]),
        ("a: [", ["expected"]),
        ("optim: lpsgdm\noptim_args: pmax=3", ["pmax", "p_max"]),
        (None, ["cannot read", "No such file"]),
    ],
)
def test_mistake_in_a_recipe_is_told_in_one_line(run_example, tmp_path, text, words):
    recipe = tmp_path / "mine.yaml"
    if text is not None:
        recipe.write_text(text + "\n")
    result = run_example(recipe)
    assert all(word in result.answer for word in words), result.answer
