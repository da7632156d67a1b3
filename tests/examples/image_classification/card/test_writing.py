import math
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from card.facts import RunFacts, license_of
from card.writing import make_model_card, results_rows, write_model_card
from huggingface_hub import ModelCard
from transformers import TrainingArguments

from hf_lpsgd import LPSGD, LPSGDM
from hf_lpsgd.optim.kernels.choice import implementation_for

TOKEN = "hf_neverToBeSeen0123456789"
HISTORY = [
    {"epoch": 0.5, "step": 5, "loss": 2.25, "learning_rate": 2e-3, "p": 18.5},
    {"epoch": 1.0, "step": 10, "loss": 1.75, "learning_rate": 1e-3, "p": 11.0},
    {"epoch": 1.0, "step": 10, "eval_loss": 1.5, "eval_accuracy": 0.8123456, "eval_runtime": 0.1},
    {"epoch": 1.5, "step": 15, "loss": 1.25, "learning_rate": 5e-4, "p": 4.0},
    {"epoch": 2.0, "step": 20, "eval_loss": 1.625, "eval_accuracy": 0.7876543, "eval_runtime": 0.1},
]
END = {"epoch": 2.0, "step": 20, "train_runtime": 12.0, "train_samples_per_second": 34.5, "train_loss": 1.6}
FINAL = {"epoch": 2.0, "step": 20, "eval_loss": 1.5, "eval_accuracy": 0.8123456}
FACTS = RunFacts("CIFAR-10", "uoft-cs/cifar10", "plain_text", "test", 50_000, 10_000, hyperparameters={"cutout": 8})


class ModelOfTransformers(SimpleNamespace):
    __module__ = "transformers.models.vit.modeling_vit"


class ModelWithCode(SimpleNamespace):
    __module__ = "models.cifar_resnet"


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """What a Trainer holds at the end of a run; keywords are those of TrainingArguments."""
    monkeypatch.setattr(sys, "argv", ["train.py", "--do_train"])
    monkeypatch.delenv("HF_TOKEN", raising=False)

    def make(history=(*HISTORY, END, FINAL), hub_model_id=None, optimizer=None, **arguments):
        defaults = {"optim": "lpsgdm", "output_dir": str(tmp_path / "tiny-vit"), "use_cpu": True, "report_to": []}
        state = SimpleNamespace(log_history=list(history), global_step=20, max_steps=20, num_train_epochs=2)
        state.best_model_checkpoint = None
        config = SimpleNamespace(model_type="vit", num_labels=10)
        model = ModelOfTransformers(config=config, num_parameters=lambda: 1234567)
        args = TrainingArguments(**{**defaults, **arguments})
        return SimpleNamespace(args=args, state=state, model=model, hub_model_id=hub_model_id, optimizer=optimizer)

    return make


def metrics(card):
    return {result.metric_type: result.metric_value for result in card.data.eval_results or []}


def hyperparameters(card):
    return dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", card.text.split("## Training")[1], re.MULTILINE))


def test_rows_hold_evaluations_in_training_with_what_was_last_logged():
    assert results_rows([*HISTORY, END, FINAL]) == [
        {"epoch": 1, "step": 10, "loss": 1.75, "learning_rate": 1e-3, "p": 11.0}
        | {"eval_loss": 1.5, "eval_accuracy": 0.8123456},
        {"epoch": 2, "step": 20, "loss": 1.25, "learning_rate": 5e-4, "p": 4.0}
        | {"eval_loss": 1.625, "eval_accuracy": 0.7876543},
    ]


def test_without_evaluations_there_is_a_row_for_each_epoch():
    logs = [entry for entry in HISTORY if "loss" in entry]
    assert [(row["epoch"], row["loss"]) for row in results_rows([*logs, END])] == [(1.0, 1.75), (1.5, 1.25)]


def test_metadata_survives_the_hub_library_and_holds_the_last_evaluation(trainer):
    card = ModelCard(str(make_model_card(trainer(hub_model_id="me/tiny-vit"), FACTS)))
    assert metrics(card) == {"accuracy": 0.8123456, "loss": 1.5}
    result = card.data.eval_results[0]
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == (
        "uoft-cs/cifar10",
        "plain_text",
        "test",
    )
    assert card.data.to_dict()["model-index"][0]["name"] == "tiny-vit"
    assert card.data.datasets == ["uoft-cs/cifar10"]
    assert card.data.metrics == ["accuracy"]
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.license is None
    assert "license" not in str(card).lower()
    assert {"lpsgdm", "image-classification", "hf_lpsgd", "vit"} <= set(card.data.tags)
    assert card.data.base_model is None


def test_text_shows_the_rows_and_the_last_evaluation(trainer):
    text = make_model_card(trainer(), FACTS, "curves.png").text
    assert "| epoch | step | training loss | evaluation loss | accuracy | learning rate | p |" in text
    assert "| 1 | 10 | 1.7500 | 1.5000 | 0.8123 | 1.000e-03 | 11.000 |" in text
    assert "| 2 | 20 | 1.2500 | 1.6250 | 0.7877 | 5.000e-04 | 4.000 |" in text
    assert "On the 10,000 images of the split `test`, at step 20: **accuracy 0.8123 and loss 1.5000**." in text
    assert "](curves.png)" in text
    assert "1,234,567 parameters" in text
    assert "12.0 s, 34.5 images per second" in text
    assert "training_args.bin" in text
    assert "@article{xu2026beyond" in text
    assert "under way" not in text


@pytest.mark.parametrize(
    ("watched", "history", "is_told"),
    [(291, HISTORY, True), (10_000, HISTORY, False), (None, HISTORY, False), (291, HISTORY[:2], False)],
)
def test_a_table_of_evaluations_on_fewer_examples_says_so(trainer, watched, history, is_told):
    card = make_model_card(trainer((*history, END, FINAL)), replace(FACTS, watched=watched))
    assert ("The evaluations in this table are on 291 of the images." in card.text) == is_told


def test_best_model_is_named_where_it_was_loaded(trainer):
    run = trainer(
        load_best_model_at_end=True, metric_for_best_model="accuracy", eval_strategy="steps", save_strategy="steps"
    )
    run.state.best_model_checkpoint = "somewhere/checkpoint-10"
    assert "The model is the best one by accuracy, of `checkpoint-10`." in make_model_card(run, FACTS).text


@pytest.mark.parametrize("optim", ["lpsgdm", "lpsgd", "adamw_torch", "sgd"])
@pytest.mark.parametrize("history", [(*HISTORY, END, FINAL), HISTORY[:3], (END,), ()], ids=len)
def test_no_placeholder_is_left(trainer, optim, history):
    card = str(make_model_card(trainer(history, optim=optim), RunFacts("some images")))
    for left in (
        r"\bNone\b",
        r"\bnan\b",
        "TODO",
        "More information",
        r"\{\w*\}",
        "<[^>]*>",
        "@@",
        r"\| +\|",
        "unknown",
    ):
        assert not re.search(left, card.split("@article")[0]), left


def test_training_under_way_is_said(trainer):
    run = trainer(HISTORY[:3])
    run.state.global_step = 10
    assert "**Training was under way when this card was written: step 10 of 20.**" in make_model_card(run, FACTS).text


@pytest.mark.parametrize(
    ("optim_args", "words", "rows"),
    [
        (None, "p starts at p_max = 20", {"largest order of the norm (p_max)": "20", "momentum": "0.9"}),
        ("p_max=6,p_schedule=linear,momentum=0.5", "in a straight line", {"momentum": "0.5", "eps": "1e-08"}),
        ("p_max=6,p_schedule=lr", "proportional to the learning rate", {"p schedule": "lr, changing by step"}),
        ("p_max=6,p_schedule=constant", "p stays at p_max = 6.", {"p schedule": "constant, changing by step"}),
        ("p_granularity=epoch", "it changes at every epoch", {"p schedule": "cosine, changing by epoch"}),
    ],
)
def test_p_and_its_schedule_are_told_in_words(trainer, optim_args, words, rows):
    card = make_model_card(trainer(optim_args=optim_args, weight_decay=0.05), FACTS)
    assert words in card.text
    assert rows.items() <= hyperparameters(card).items()
    facts = {"weight decay": "0.05", "cutout": "8", "images to train": "50,000"}
    assert facts.items() <= hyperparameters(card).items()


def test_optimizer_in_force_counts_more_than_the_arguments(trainer):
    optimizer = LPSGDM([torch.zeros(1)], p_max=7, momentum=0.25, weight_decay=0.5)
    shown = hyperparameters(make_model_card(trainer(optimizer=optimizer, optim_args="p_max=20"), FACTS))
    assert shown["largest order of the norm (p_max)"] == "7"
    assert (shown["momentum"], shown["weight decay"]) == ("0.25", "0.5")


def test_lpsgd_has_no_momentum(trainer):
    card = make_model_card(trainer(optim="lpsgd"), FACTS)
    assert "momentum" not in hyperparameters(card)
    assert "lr * g / (|g| + eps)^rho" in card.text
    assert "lpsgd" in card.data.tags


def test_words_about_the_optimizer_go_by_its_class_and_not_by_what_its_group_holds(trainer):
    optimizer = LPSGD([{"params": [torch.zeros(1)], "momentum": 0.9}])
    card = make_model_card(trainer(optim="lpsgd", optimizer=optimizer), FACTS)
    assert "momentum" not in card.text
    assert "with LPSGD." in card.text


def test_an_optimizer_other_than_the_arguments_name_is_told_by_its_class(trainer):
    card = make_model_card(trainer(optim="adamw_torch", optimizer=LPSGD([torch.zeros(1)], p_max=5)), FACTS)
    assert "with LPSGD." in card.text
    assert hyperparameters(card)["largest order of the norm (p_max)"] == "5"
    assert "p schedule" not in hyperparameters(card)
    assert "lpsgd" in card.data.tags
    card = make_model_card(trainer(optimizer=torch.optim.SGD([torch.zeros(1)])), FACTS)
    assert "The optimizer is `SGD`." in card.text
    assert "lpsgdm" not in str(card).lower()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"foreach": True}, "foreach, on cpu"),
        ({"foreach": False}, "one tensor at a time, on cpu"),
        ({"fused": False}, "one tensor at a time, on cpu"),
    ],
)
def test_the_implementation_of_the_step_is_told(trainer, options, told):
    optimizer = LPSGDM([torch.zeros(1)], **options)
    key = "implementation of the step"
    assert hyperparameters(make_model_card(trainer(optimizer=optimizer), FACTS))[key] == told
    text = ",".join(f"{name}={str(value).lower()}" for name, value in options.items())
    assert hyperparameters(make_model_card(trainer(optim_args=text), FACTS))[key] == told


def test_the_reference_size_of_the_gradient_is_told_with_how_it_was_found(trainer):
    key = "root mean square of the gradient (grad_rms)"
    optimizer = LPSGDM([torch.zeros(2, requires_grad=True)], grad_rms="auto")
    (param,) = optimizer.param_groups[0]["params"]
    for _ in range(3):
        param.grad = torch.full((2,), 0.5)
        optimizer.step()
    card = make_model_card(trainer(optimizer=optimizer), FACTS)
    assert hyperparameters(card)[key] == "0.0935, measured over 3 updates"
    assert "So no element moves by more than 0.5 * lr." in card.text
    given = LPSGD([torch.zeros(1)], grad_rms=0.25)
    card = make_model_card(trainer(optimizer=given), FACTS)
    assert hyperparameters(card)[key] == "0.25, as given"
    assert "So no element moves by more than 0.5 * lr." in card.text
    papers = make_model_card(trainer(optimizer=LPSGD([torch.zeros(1)])), FACTS)
    assert key not in hyperparameters(papers)
    assert "more than lr" not in papers.text


def test_the_implementation_that_nobody_chose_is_the_one_of_the_device(trainer):
    name = implementation_for(torch.device("cpu"))
    told = {"single": "one tensor at a time"}.get(name, name)
    shown = hyperparameters(make_model_card(trainer(optimizer=LPSGDM([torch.zeros(1)])), FACTS))
    assert shown["implementation of the step"] == f"{told}, on cpu"


@pytest.mark.parametrize(
    ("count", "state", "told"),
    [
        (1, {}, "1"),
        (2, {}, "2, DDP"),
        (4, {"deepspeed_plugin": SimpleNamespace(zero_stage=3)}, "4, DeepSpeed with ZeRO stage 3"),
        (1, {"deepspeed_plugin": SimpleNamespace(zero_stage=2)}, "1, DeepSpeed with ZeRO stage 2"),
        (
            2,
            {"fsdp_plugin": SimpleNamespace(fsdp_version=2, sharding_strategy=SimpleNamespace(name="FULL_SHARD"))},
            "2, FSDP2",
        ),
        (
            2,
            {"fsdp_plugin": SimpleNamespace(sharding_strategy=SimpleNamespace(name="FULL_SHARD"))},
            "2, FSDP1 (FULL_SHARD)",
        ),
    ],
)
def test_the_number_of_processes_and_what_divides_the_work_are_told(trainer, monkeypatch, count, state, told):
    run = trainer()
    run.accelerator = SimpleNamespace(state=SimpleNamespace(**state), mixed_precision="bf16")
    run.is_fsdp_enabled = "fsdp_plugin" in state
    monkeypatch.setattr(TrainingArguments, "world_size", count)
    shown = hyperparameters(make_model_card(run, FACTS))
    assert shown["processes"] == told
    assert shown["precision"] == "bfloat16, mixed"  # as Accelerate's config says, whatever the arguments


@pytest.mark.parametrize("name", ["My_Birds v2", "Vögel", "UPPER.Case-3"])
def test_a_local_dataset_keeps_all_letters_of_its_name(trainer, name):
    card = make_model_card(trainer(), RunFacts(f"the local dataset {name}", dataset_folder=name))
    assert f"on the local dataset `{name}` with" in card.text
    assert name in str(card).split("---")[1]
    result = ModelCard(str(card)).data.eval_results[0]
    assert result.dataset_name == f"the local dataset {name}"
    assert result.dataset_type == name.replace(" ", "-")


def test_no_folder_of_the_users_home_is_in_the_card(trainer, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = ["--train_dir", str(tmp_path / "photos"), "--cache_dir=/home/somebody/cache", "--output_dir", "x"]
    run = trainer()
    (tmp_path / "a.yaml").write_text(f"output_dir: {tmp_path}/out\n")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "code/train.py"), str(tmp_path / "a.yaml"), *arguments])
    card = str(make_model_card(run, FACTS))
    assert str(tmp_path) not in card
    assert "somebody" not in card
    assert "python ~/code/train.py ~/a.yaml --train_dir ~/photos --cache_dir=.../cache --output_dir x" in card
    assert "output_dir: ~/out" in card
    assert 'model="tiny-vit")  # the folder of this card' in card


def test_other_optimizers_are_named_and_the_paper_is_not_cited_for_them(trainer):
    card = make_model_card(trainer(optim="sgd", optim_args="momentum=0.9"), FACTS)
    assert "The optimizer is the Trainer's `sgd` with `momentum=0.9`." in card.text
    assert "sgd" in card.data.tags
    assert "lpsgdm" not in card.data.tags
    assert "xu2026" not in card.text
    assert "p_max" not in card.text


def test_images_per_step_count_accumulation(trainer):
    run = trainer(per_device_train_batch_size=16, gradient_accumulation_steps=4)
    shown = hyperparameters(make_model_card(run, FACTS))
    assert shown["images per step"] == "64 (16 per device, 1 process, 4 accumulated)"


def test_many_evaluations_are_thinned_to_forty_with_the_first_and_last(trainer):
    history = [{"epoch": step, "step": step, "eval_loss": 1.0, "eval_accuracy": 0.5} for step in range(1, 301)]
    text = make_model_card(trainer([*history, END]), FACTS).text
    shown = re.findall(r"^\| \d+ \| (\d+) \|", text, re.MULTILINE)
    assert (len(shown), shown[0], shown[-1]) == (40, "1", "300")
    assert "40 of 300 rows are shown" in text


def test_loss_that_is_no_number_is_kept_out_of_the_metadata(trainer):
    card = make_model_card(trainer([*HISTORY, END, {**FINAL, "eval_loss": math.nan}]), FACTS)
    assert metrics(card) == {"accuracy": 0.8123456}


def test_fine_tuned_model_names_its_base(trainer, tmp_path):
    card = make_model_card(trainer(), RunFacts("images", base_model="google/vit-base-patch16-224", license="mit"))
    assert card.data.base_model == "google/vit-base-patch16-224"
    assert card.data.license == "mit"
    assert "fine-tuned from `google/vit-base-patch16-224`" in card.text
    (tmp_path / "mine").mkdir()
    card = make_model_card(trainer(), RunFacts("images", base_model=str(tmp_path / "mine")))
    assert card.data.base_model is None  # the Hub would not know it
    assert "fine-tuned from `mine`" in card.text


@pytest.mark.parametrize(
    "card",
    [
        "---\nlicense: bsd-3-clause\n---\n# x",
        "---\ntags: [a]\n---\n# x",
        "---\nlicense: unknown\n---\n# x",
        "# x",
        None,
    ],
)
def test_licence_is_the_one_in_the_base_models_card(tmp_path, card):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert license_of(str(tmp_path)) == ("bsd-3-clause" if card and "bsd" in card else None)


def test_model_with_code_of_its_own_is_loaded_with_trust(trainer):
    run = trainer(hub_model_id="me/tiny-vit")
    assert 'pipeline("image-classification", model="me/tiny-vit")' in make_model_card(run, FACTS).text
    run.model.__class__ = ModelWithCode
    assert 'model="me/tiny-vit", trust_remote_code=True)' in make_model_card(run, FACTS).text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", f"optim: lpsgdm\nhub_token: {TOKEN}\nlearning_rate: 1e-3\n"),
        ("a.json", f'{{"optim": "lpsgdm", "hub_token": "{TOKEN}", "learning_rate": 1e-3}}'),
    ],
)
def test_file_of_arguments_is_shown_without_its_token(trainer, tmp_path, monkeypatch, name, text):
    (tmp_path / name).write_text(text)
    run = trainer()
    monkeypatch.setattr(sys, "argv", ["train.py", str(tmp_path / name)])
    shown = make_model_card(run, FACTS).text.split(f"with `{name}`:")[1]
    assert TOKEN not in shown
    assert "***" in shown
    assert re.search(r"optim\"?: \"?lpsgdm", shown)
    assert re.search(r"learning_rate\"?: 1e-3", shown)


def test_token_in_use_is_hidden_wherever_it_stands(trainer, monkeypatch):
    run = trainer()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(sys, "argv", ["train.py", "--run_name", f"my-{TOKEN}-run"])
    text = make_model_card(run, FACTS).text
    assert TOKEN not in text
    assert "my-***-run" in text


def test_card_and_curves_are_written_into_the_output_folder(trainer, monkeypatch, tmp_path):
    assert write_model_card(trainer(), FACTS) is None
    assert (tmp_path / "tiny-vit/training_curves.png").read_bytes().startswith(b"\x89PNG")
    written = ModelCard.load(tmp_path / "tiny-vit/README.md")
    assert metrics(written) == {"accuracy": 0.8123456, "loss": 1.5}
    assert "](training_curves.png)" in written.text

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "matplotlib" in write_model_card(trainer(), FACTS)
    assert "training_curves.png" not in ModelCard.load(tmp_path / "tiny-vit/README.md").text
