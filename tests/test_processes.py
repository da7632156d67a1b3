"""Processes that a launcher started and that do not know of each other: refused before any of them trains."""

import pytest
from trainer_model import TinyData, TinyModel
from transformers import Trainer, TrainingArguments

from hf_lpsgd import LPSGDM
from hf_lpsgd.processes import check_processes, engines_requested
from hf_lpsgd.trainer import validate_optim_args


@pytest.mark.parametrize("name", ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"])
def test_more_processes_started_than_train_together_are_refused_in_one_line(name, monkeypatch):
    monkeypatch.setenv(name, "4")
    with pytest.raises(ValueError, match=rf"started 4 processes \({name}=4\), and only 2.*--use_cpu True") as error:
        check_processes(2)
    assert "\n" not in str(error.value)
    check_processes(4)


@pytest.mark.parametrize("size", ["", "1", "all"])
def test_one_process_and_an_environment_that_says_nothing_are_accepted(size, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", size)
    check_processes(1)


OTHERS = ["RANK", "TORCHELASTIC_RUN_ID", "ACCELERATE_USE_CPU"]


@pytest.mark.parametrize("name", ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"])
def test_a_leftover_that_nothing_else_confirms_is_a_warning_of_one_line(name, monkeypatch):
    monkeypatch.setenv(name, "2")
    for other in OTHERS:
        monkeypatch.delenv(other, raising=False)
    with pytest.warns(UserWarning, match=f"^{name}=2 is set, but no launcher is at work.*Unset {name}") as caught:
        check_processes(1)
    assert [("\n" in str(warning.message)) for warning in caught] == [False]


@pytest.mark.parametrize("other", OTHERS)
def test_a_process_that_a_launcher_started_is_refused_where_it_would_train_alone(other, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(other, "0")
    with pytest.raises(ValueError, match="The launcher started 2 processes"):
        check_processes(1)


def test_a_leftover_does_not_keep_a_trainer_from_training(monkeypatch, tmp_path):
    args = TrainingArguments(str(tmp_path), optim="lpsgd", use_cpu=True, report_to=[])
    monkeypatch.setenv("PMI_SIZE", "2")
    with pytest.warns(UserWarning, match="PMI_SIZE=2 is set, but no launcher is at work"):
        Trainer(TinyModel(), args, train_dataset=TinyData(4)).train()


def test_every_trainer_that_trains_with_an_optimizer_of_ours_is_checked(monkeypatch, tmp_path):
    arguments = {"use_cpu": True, "report_to": []}
    ours = TrainingArguments(str(tmp_path), optim="lpsgd", **arguments)
    other = TrainingArguments(str(tmp_path), optim="sgd", **arguments)
    model = TinyModel()
    given = Trainer(model, other, optimizers=(LPSGDM(model.parameters()), None), train_dataset=[{}])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="The launcher started 2 processes"):
        validate_optim_args(ours)
    with pytest.raises(ValueError, match="The launcher started 2 processes"):
        Trainer(model, ours)
    with pytest.raises(ValueError, match="The launcher started 2 processes"):
        given.train()
    assert validate_optim_args(other) is None


def test_an_engine_that_the_launcher_requested_is_named(monkeypatch):
    assert engines_requested() == []
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert engines_requested() == ["FSDP"]
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert engines_requested() == ["DEEPSPEED"]
