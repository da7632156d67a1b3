"""A mistyped name is answered with the name that was likely meant."""

import importlib
import re
import sys

import pytest
from errors.nearest import did_you_mean, listed
from paths import IMAGE_CLASSIFICATION

TRAINER, LOOP = "run_image_classification", "run_image_classification_no_trainer"
WRONG = {
    TRAINER: {
        "--optim lpsgdmm": "lpsgdm",
        "--optim LPSGDM": "lpsgdm",
        "--optim adamw": "adamw_torch",
        "--lr_scheduler_type cosin": "cosine",
        "--lr-scheduler-type cosin": "cosine",
        "--eval_strategy epochs": "epoch",
        "--save_strategy step": "steps",
        "--hub_strategy every": "every_save",
        "--log_level inf": "info",
        "--report_to tensorbord": "tensorboard",
        "--augmentation shfit": "shift",
        "--on_bad_image skp": "skip",
        "--lerning_rate 1e-3": "--learning_rate",
        "--optim-arg p_max=3": "--optim_args",
        "--num_epochs=3": "--num_train_epochs",
    },
    LOOP: {
        "--mixed_precision fp61": "fp16",
        "--p_schedule cosin": "cosine",
        "--augmentation shfit": "shift",
        "--momentun 0.5": "--momentum",
        "--epochs 3": "--num_epochs",
    },
}


@pytest.fixture
def refusal(example, monkeypatch, capsys, tmp_path):
    """The one line by which a script refuses its arguments."""

    def run(script, *arguments):
        module = importlib.import_module(script)
        argv = [*arguments, "--output_dir", str(tmp_path / "run")]
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *argv])
        begin = module.main if script == TRAINER else lambda: module.parse_arguments(argv)
        with pytest.raises(SystemExit) as ended:
            begin()
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


@pytest.mark.parametrize(("script", "typed"), [(script, typed) for script, cases in WRONG.items() for typed in cases])
def test_a_mistyped_choice_or_flag_is_answered_with_the_nearest_name(refusal, script, typed):
    flags = ["--do_train", "--use_cpu"] if script == TRAINER else ["--cpu"]
    assert f"Did you mean {WRONG[script][typed]}?" in refusal(script, *flags, *typed.split())


def test_a_long_list_of_choices_is_cut_short_and_begins_with_the_nearest(refusal):
    line = refusal(TRAINER, "--do_train", "--use_cpu", "--optim", "lpsgdmm")
    assert "invalid choice: 'lpsgdmm'. Did you mean lpsgdm? Choose from 'lpsgdm', 'lpsgd', " in line
    assert line.count("', '") == 7
    assert "; --help lists all " in line


@pytest.mark.parametrize(("script", "flags"), [(TRAINER, ["--optim", "--output_dir"]), (LOOP, ["--p_max", "--cpu"])])
def test_help_lists_the_flags(example, script, flags, capsys):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(script).parse_arguments(["--help"])
    assert ended.value.code == 0
    shown = re.findall(r"--\w+", capsys.readouterr().out)
    assert [flag for flag in flags if flag not in shown] == []


def test_a_name_that_is_like_no_other_is_answered_without_a_guess(refusal):
    assert "Did you mean" not in refusal(TRAINER, "--do_train", "--use_cpu", "--optim", "qqqqqqqq")
    assert did_you_mean("zzz", ["cosine", "linear"]) == ""


def test_names_are_listed_as_they_are_where_they_are_few():
    assert listed("lin", ["cosine", "linear"]) == "'cosine', 'linear'"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim: lpsgdmm\n", "argument --optim: invalid choice: 'lpsgdmm'. Did you mean lpsgdm?"),
        ("lerning_rate: 1e-3\n", "has unknown arguments: lerning_rate. Did you mean learning_rate?"),
        ("eval_strategy: true\n", "argument --eval_strategy/--eval-strategy: invalid choice: 'True'."),
    ],
)
def test_names_in_a_recipe_are_read_as_on_the_command_line(refusal, tmp_path, text, words):
    (tmp_path / "recipe.yaml").write_text(f"do_train: true\nuse_cpu: true\n{text}")
    assert words in refusal(TRAINER, str(tmp_path / "recipe.yaml"))


def test_a_bare_no_in_a_recipe_is_the_word_no(example, tmp_path):
    from run.arguments import parse_arguments

    (tmp_path / "recipe.yaml").write_text("eval_strategy: no\n")
    training_args = parse_arguments([str(tmp_path / "recipe.yaml"), "--output_dir", "x", "--use_cpu"]).training
    assert training_args.eval_strategy.value == "no"


def test_a_mistyped_recipe_is_answered_with_the_nearest_file(refusal):
    recipes = IMAGE_CLASSIFICATION / "recipes"
    line = refusal(TRAINER, str(recipes / "resnet18_cifar01.yaml"))
    assert line.endswith(f"No such file or directory. Did you mean {recipes / 'resnet18_cifar10.yaml'}?")


@pytest.mark.parametrize(
    ("flags", "guess"),
    [
        (["--model_type", "vitt"], "vit"),
        (["--model_type", "cifar-resnet18"], "cifar_resnet"),
        (["--config_overrides", "hiden_size=3"], "hidden_size"),
        (["--eval_split_name", "validatoin"], "validation"),
        (["--image_column_name", "imgae"], "image"),
    ],
)
def test_mistyped_names_of_models_and_of_parts_of_the_dataset_are_answered_so_too(run_example, flags, guess):
    assert f"Did you mean {guess}?" in run_example("--do_train", "--do_eval", *flags).answer
