"""Checkpoints that version 0.1.0 wrote in the middle of a run, and how the run ended there: this version ends alike.

The data in data/v0_1_0 was written by 0.1.0 with the runs below; gradients.pt holds the gradients of the plain loops.
These end bit for bit as then where our own kernel makes the steps, with the instructions of then. The gradients of a
model are computed by torch, which rounds otherwise on another processor.
"""

import json
import shutil

import pytest
import torch
from paths import ROOT
from safetensors.torch import load_file
from trainer_model import TinyData, TinyModel
from transformers import Trainer, TrainingArguments

from hf_lpsgd import LPSGD, LPSGDM, tie_p_schedule
from hf_lpsgd.optim.kernels import cpu

DATA = ROOT / "tests" / "data" / "v0_1_0"
MADE_WITH = json.loads((DATA / "made_with.json").read_text())
STEPS, CUT = 12, 5


@pytest.mark.parametrize(("name", "cls"), [("lpsgd", LPSGD), ("lpsgdm", LPSGDM)])
def test_a_plain_loop_goes_on_as_it_did_in_0_1_0(name, cls):
    saved = torch.load(DATA / f"{name}.pt", weights_only=True)
    params = [torch.nn.Parameter(param.clone()) for param in saved["cut"]["params"]]
    optimizer = cls([{"params": params[:1]}, {"params": params[1:]}])
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, STEPS)
    tie = tie_p_schedule(optimizer, scheduler, "cosine", num_training_steps=STEPS, num_warmup_steps=2)
    optimizer.load_state_dict(saved["cut"]["optimizer"])
    scheduler.load_state_dict(saved["cut"]["scheduler"])
    assert optimizer.param_groups[0]["p_max"] == 6.0  # of the checkpoint, not of the constructor
    assert [p < 20.0 for p in tie.get_p()] == [True, True]
    for grads in torch.load(DATA / "gradients.pt", weights_only=True):
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizer.step()
        scheduler.step()
    assert [group["p"] for group in optimizer.param_groups] == [2.0, 2.0]
    tolerance = 0 if cpu.instructions() == MADE_WITH["cpu"] else 1e-6
    for param, expected in zip(params, saved["end"], strict=True):
        torch.testing.assert_close(param.detach(), expected, rtol=tolerance, atol=tolerance)


def test_a_trainer_goes_on_as_it_did_in_0_1_0(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DATA / "checkpoint-5", tmp_path / "trainer" / "checkpoint-5")
    args = TrainingArguments(
        "trainer",
        optim="lpsgdm",
        optim_args="p_max=20",
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        weight_decay=0.1,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_steps=5,
        max_steps=10,
        lr_scheduler_type="cosine",
        warmup_steps=2,
    )
    model = TinyModel()
    model.load_state_dict(load_file(DATA / "checkpoint-5" / "model.safetensors"))
    trainer = Trainer(model, args, train_dataset=TinyData(40))
    try:
        with pytest.warns(UserWarning, match="grad_rms is None, not auto as requested"):  # the default now
            trainer.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-5"))
    finally:
        torch.set_num_threads(threads)
    expected = torch.load(DATA / "trainer_end.pt", weights_only=True)
    # An element moves by up to 1e-2 a step. One whose gradient is nearly zero can take another share of it where the
    # gradient is rounded otherwise; a step that is not that of 0.1.0 moves most elements by more than this.
    for name, tensor in trainer.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-4)
    logs = [entry["p"] for entry in trainer.state.log_history if "p" in entry]
    assert logs == pytest.approx([entry["p"] for entry in json.loads((DATA / "trainer_log.json").read_text())])


def test_the_training_arguments_that_0_1_0_pickled_are_read():
    args = torch.load(DATA / "checkpoint-5" / "training_args.bin", weights_only=False)
    assert args.optim.value == "lpsgdm"
    assert args.optim_args == "p_max=20"
