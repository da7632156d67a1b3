"""What the card of a whole run tells of its licence, its dataset and its step."""

import pytest
from huggingface_hub import ModelCard
from PIL import Image

TRAIN = ["--do_train", "--do_eval", "--optim", "lpsgdm", "--max_steps", 1, "--per_device_train_batch_size", 4]
VIT = ["--config_overrides", "hidden_size=8,intermediate_size=8,num_attention_heads=1,num_hidden_layers=1"]
TINY = ["--model_type", "cifar_resnet", "--config_overrides", "depths=[1],hidden_sizes=[8]"]


@pytest.fixture
def birds(tmp_path):
    """Two classes of images, under a name that is a link to a folder of another name."""
    for name, level in (("Owl", 40), ("Tit", 210)):
        (tmp_path / "store" / name).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (12, 12), (level + number,) * 3).save(tmp_path / "store" / name / f"{number}.png")
    (tmp_path / "My_Birds v2").symlink_to(tmp_path / "store")
    return tmp_path / "My_Birds v2"


def card_of(result):
    assert result.status == 0, result.output
    return ModelCard.load(result.folder / "README.md")


def test_the_card_has_no_licence_that_nobody_gave_and_the_name_of_the_dataset_as_typed(run_example, birds):
    card = card_of(run_example(*TRAIN, "--train_dir", birds, *TINY))
    assert card.data.license is None
    assert "on the local dataset `My_Birds v2` with LPSGDM." in card.text
    assert card.data.eval_results[0].dataset_name == "the local dataset My_Birds v2"
    assert "| processes | 1 |" in card.text
    assert "| implementation of the step | " in card.text
    assert "An equivalent command:" in card.text  # pytest was typed


def test_a_licence_is_that_of_the_flag_or_of_the_model_that_was_started_from(run_example, birds):
    given = run_example(*TRAIN, "--train_dir", birds, "--license", "mit", *VIT)
    assert card_of(given).data.license == "mit"
    start = ["--model_name_or_path", given.folder]
    assert card_of(run_example(*TRAIN, "--train_dir", birds, *start)).data.license == "mit"
    assert card_of(run_example(*TRAIN, "--train_dir", birds, *start, "--license", "cc0-1.0")).data.license == "cc0-1.0"
    (given.folder / "README.md").unlink()
    assert card_of(run_example(*TRAIN, "--train_dir", birds, *start)).data.license is None


def test_the_card_names_the_optimizer_that_was_asked_for(run_example, birds):
    layerwise = [flag if flag != "lpsgdm" else "lpsgdm_layerwise" for flag in TRAIN]
    card = card_of(run_example(*layerwise, "--max_grad_norm", "0", "--train_dir", birds, *TINY))
    assert "lpsgdm_layerwise" in card.data.tags
    assert "| optimizer | `lpsgdm_layerwise` |" in card.text
