"""What is found out of a model before it is trained."""

import json

import pytest


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_loss_of_accumulated_batches_is_that_of_one_batch(run_example, kind):
    small = {
        "resnet": "embedding_size=8,depths=[1],hidden_sizes=[8]",
        "vit": "hidden_size=32,intermediate_size=32,num_attention_heads=2,num_hidden_layers=1",
    }[kind]
    flags = ["--do_train", "--model_type", kind, "--config_overrides", small, "--augmentation", "none"]
    flags += ["--max_steps", 1, "--logging_steps", 1, "--eval_strategy", "no", "--max_train_samples", 40]
    losses = []
    for batch, steps in ((40, 1), (16, 3)):  # 16, 16 and 8
        sizes = ["--per_device_train_batch_size", batch, "--gradient_accumulation_steps", steps]
        run = run_example(*flags, *sizes)
        assert run.status == 0, run.output
        losses.append(json.loads((run.folder / "trainer_state.json").read_text())["log_history"][0]["loss"])
    # Batch norm sees smaller batches.
    assert losses[1] == pytest.approx(losses[0], rel={"resnet": 0.2, "vit": 1e-4}[kind])
