"""The Trainer scripts of the study: what they train on, with which optimizer, and what they leave."""

import subprocess
import sys
from dataclasses import replace

import pytest
import run_study
import torch
from huggingface_hub import ModelCard
from study import character_model, data, language_model, sentence_classifier, tasks, trainer_cell
from study.training import train
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast
from versions import repeats_the_studies

CELL = {"task": "shakespeare", "optimizer": "AdamW", "options": {}, "rate": 1e-3, "seed": 0, "split": "validation"}


@repeats_the_studies
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("AdamW", {}),
        ("Lion", {}),
        ("SGD", {}),
        ("LPSGD", {"grad_rms": "auto"}),
        ("LPSGDM", {"p_max": 6, "p_schedule": "linear", "clip": 0, "weight_decay": 0.01}),
    ],
)
def test_a_trainer_script_trains_with_the_optimizer_that_the_cell_names(optimizer, options, monkeypatch):
    whole = data.text()
    train_on, held_out = (
        (inputs[:number], labels[:number]) for (inputs, labels), number in ((whole.train, 96), (whole.held_out, 20))
    )
    short = data.Data(train_on, held_out, kept_back=32)
    monkeypatch.setattr(language_model, "text", lambda: short)
    used = []
    real = language_model.Trainer.train

    def train_and_look(trainer, *args, **kwargs):
        result = real(trainer, *args, **kwargs)
        base = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        used.append((type(base).__name__, base.param_groups[0], trainer.args.max_grad_norm))
        return result

    monkeypatch.setattr(language_model.Trainer, "train", train_and_look)
    cell = {
        "task": "text_trainer",
        "optimizer": optimizer,
        "options": options,
        "rate": 1e-3,
        "seed": 0,
        "split": "test",
    }
    result = train(cell)
    ((name, group, clip),) = used
    assert name == optimizer
    assert group["initial_lr"] == 1e-3
    assert clip == options.get("clip", 1.0)
    if optimizer == "LPSGDM":
        assert [group["p_max"], group["weight_decay"]] == [6, 0.01]
    if optimizer == "SGD":
        assert group["momentum"] == 0.9
    assert 0 < result["accuracy"] < 1
    assert [point["step"] for point in result["curve"]][-1] == 12
    assert ("p" in result["curve"][0]) == optimizer.startswith("LP")


def test_a_script_trains_on_the_device_that_was_requested(monkeypatch, tmp_path):
    task = tasks.TASKS["shakespeare"]
    for device, is_flagged in (("cpu", True), ("cuda", False)):
        flags, _ = trainer_cell.flags_of(CELL, task, str(tmp_path), device)
        assert ("--use_cpu" in flags) == is_flagged
        monkeypatch.setattr(trainer_cell, "train_by_trainer", lambda cell, task, device: {"trained_on": device})
        assert train(CELL, device)["trained_on"] == device


@pytest.mark.parametrize(("split", "end", "until"), [("validation", 3400, 3600), ("test", 3600, 4000)])
def test_the_character_model_is_not_trained_on_the_text_that_it_is_evaluated_on(
    split, end, until, few_steps, tmp_path
):
    flags, _ = trainer_cell.flags_of({**CELL, "split": split}, tasks.TASKS["shakespeare"], str(tmp_path / "out"))
    trainer, final = character_model.main(flags)
    assert trainer.train_dataset.starts.max() + character_model.CONTEXT < end
    starts = trainer.eval_dataset.dataset.starts  # it is a Subset
    assert starts[0] == end
    assert starts[-1] + character_model.CONTEXT < until
    assert 0 < final["eval_loss"] < 10
    assert not any(parameter.any() for name, parameter in trainer.model.named_parameters() if name.endswith(".bias"))


@repeats_the_studies
def test_the_character_model_has_the_size_and_the_loss_of_an_untrained_model_of_nanogpt():
    torch.manual_seed(0)
    model = character_model.make_model(65)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in trained if parameter.dim() > 1) == 802_944
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.transformer.h[0].mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.transformer.h[0].mlp.c_proj.weight.std().item() == pytest.approx(0.02 / 8**0.5, rel=0.05)
    tokens = torch.randint(65, (4, 65))
    loss = character_model.loss_of(model(input_ids=tokens[:, :-1]), tokens[:, 1:])
    assert loss.item() == pytest.approx(4.17, abs=0.1)


def test_a_script_that_is_run_as_a_command_leaves_the_card_of_its_task(few_steps, tmp_path):
    script, out = str(run_study.HERE / "study" / "character_model.py"), tmp_path / "out"
    flags = ["--text_file", str(tmp_path / "tinyshakespeare.txt"), "--split", "validation"]
    flags += [
        "--max_steps",
        "4",
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "2",
        "--use_cpu",
        "--output_dir",
        str(out),
    ]
    command = [sys.executable, "-m", "hf_lpsgd", script, "--optim", "lpsgdm", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    card = ModelCard.load(out / "README.md")
    loss = card.data.eval_results[0].metric_value
    assert f"loss = {loss:.3f}" in done.stdout
    assert [card.data.pipeline_tag, card.data.metrics] == ["text-generation", None]
    assert "A character model of type `gpt2`" in card.text
    assert "trained from scratch on tinyshakespeare with LPSGDM" in card.text
    assert "of the split `validation`" in card.text
    assert f"**loss {loss:.4f}**" in card.text
    assert "in this table are on" not in card.text  # there are too few to leave any out
    assert "-m hf_lpsgd" in card.text
    assert "image" not in card.text
    assert (out / "model.safetensors").exists()


@repeats_the_studies
@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_pretrained_model_is_fine_tuned_and_evaluated_on_other_sentences(split, tmp_path, monkeypatch):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "model")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertForSequenceClassification(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(tmp_path / "model")
    lines = [f"{number % 2}\t{('bad', 'good')[number % 2]} film" + " film" * (number % 7) for number in range(60)]
    (tmp_path / "sst2_train.tsv").write_text("\n".join(["label\tsentence", *lines]) + "\n")
    (tmp_path / "sst2_dev.tsv").write_text("sentence\tlabel\n" + "good film\t1\nbad film\t0\n" * 4)
    monkeypatch.setattr(sentence_classifier, "HELD_OUT", 10)
    monkeypatch.setitem(data.PLACES, "texts", str(tmp_path))
    monkeypatch.setitem(data.PLACES, "minilm", str(tmp_path / "model"))
    task = tasks.TASKS["sst2"]
    task = replace(task, batch_size=8, flags=task.flags + " --max_train_samples 40")
    monkeypatch.setitem(tasks.TASKS, "sst2", task)
    cell = {"task": "sst2", "optimizer": "Adafactor", "options": {}, "rate": 1e-2, "seed": 0, "split": split}
    flags, _ = trainer_cell.flags_of(cell, task, str(tmp_path / "out"))
    trainer, _ = sentence_classifier.main(flags)
    assert [len(trainer.train_dataset), len(trainer.eval_dataset)] == [40, 10 if split == "validation" else 8]
    result = train(cell)
    assert 0 <= result["accuracy"] <= 1
    assert result["eval_loss"] < 2
    assert result["curve"][-1]["step"] == 5


@repeats_the_studies
@pytest.mark.parametrize(("split", "trained", "evaluated", "steps"), [("validation", 21, 3, 3), ("test", 24, 10, 6)])
def test_the_showcase_chooses_by_images_that_are_not_the_test_and_in_fewer_epochs(
    example, split, trained, evaluated, steps, write_dataset, tmp_path, monkeypatch
):
    monkeypatch.setitem(data.PLACES, "cifar10", str(write_dataset(tmp_path / "cifar10", "cifar10")))
    task = replace(tasks.TASKS["cifar10"], batch_size=8, epochs=2, epochs_to_choose=1)
    monkeypatch.setitem(tasks.TASKS, "cifar10", task)
    options = {"grad_rms": "auto", "momentum": 0.6}
    cell = {"task": "cifar10", "optimizer": "LPSGDM", "options": options, "rate": 1e-3, "seed": 0}
    trainers, make = [], example.make_trainer
    monkeypatch.setattr(example, "make_trainer", lambda *a, **k: trainers.append(make(*a, **k)) or trainers[-1])
    result = train({**cell, "split": split})
    assert [len(trainers[0].train_dataset), len(trainers[0].eval_dataset)] == [trained, evaluated]
    assert trainers[0].state.global_step == steps
    assert [result["parameters"], result["state_bytes"]] == [1_204_378, 4 * 1_204_378]
    assert 0 <= result["accuracy"] <= 1
