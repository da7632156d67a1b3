"""A third optimizer and a fifth p schedule, added through the record and the table alone, train by `--optim`."""

import json

import pytest

SCRIPT = '''
import json, sys
import torch
from transformers import HfArgumentParser, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames
import hf_lpsgd
from hf_lpsgd.optim import OPTIMIZERS, OptimizerRecord
from hf_lpsgd.optim.base import LpOptimizer
from hf_lpsgd.optim.options import EPS, FOREACH, FUSED, LR, MAXIMIZE, P_MAX, WEIGHT_DECAY, Option
from hf_lpsgd.schedules import P_SCHEDULES, PScheduleRecord
from hf_lpsgd.trainer import OptimArgs, register


class Toy(LpOptimizer):
    """Steps by +lr * (p + tau), whatever the gradient."""

    tau = Option("tau", "added to p", low=0.0, below=10.0)
    options = (LR, P_MAX, tau, EPS, WEIGHT_DECAY, MAXIMIZE, FOREACH, FUSED)

    def __init__(self, params, lr=1e-3, p_max=4.0, tau=1.0, eps=0.0, weight_decay=0.0, *, maximize=False, foreach=None,
                 fused=None):
        super().__init__(params, lr=lr, p_max=p_max, tau=tau, eps=eps, weight_decay=weight_decay, maximize=maximize,
                         foreach=foreach, fused=fused)

    def make_step(self, call, hyper, numbers):
        for param in call.params:
            param.add_(hyper.lr * (call.group["p"] + call.group["tau"]))


OPTIMIZERS["toy"] = OptimizerRecord("toy", Toy, "a toy")
P_SCHEDULES["square"] = PScheduleRecord(lambda place: (1 - place.progress) ** 2, "a toy", needs_horizon=True)
register()
try:
    OptimArgs.parse("toy", "tau=10")
except ValueError as error:
    mistake = str(error)


class Model(torch.nn.Linear):
    def forward(self, inputs):
        return {"loss": super().forward(inputs).square().mean()}


(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
model = Model(2, 2)
torch.nn.init.zeros_(model.weight)
trainer = Trainer(model, args, train_dataset=[{"inputs": torch.ones(2)}] * 8)
trainer.train()
logs = [entry for entry in trainer.state.log_history if "learning_rate" in entry]
print("RESULT" + json.dumps({"p": [entry["p"] for entry in logs], "weight": model.weight[0, 0].item(),
    "class": type(trainer.optimizer.optimizer).__name__, "group": trainer.optimizer.param_groups[0]["tau"],
    "mistake": mistake}))
'''
FLAGS = "--optim toy --learning_rate 0.125 --max_steps 5 --logging_steps 1 --lr_scheduler_type constant --use_cpu"
FLAGS += " --save_strategy no --report_to none --disable_tqdm true"


def test_a_toy_optimizer_and_a_toy_schedule_train_by_name_and_a_mistake_is_refused(forks, tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    options = [*FLAGS.split(), "--optim_args", "p_max=6,tau=2,p_schedule=square"]
    output = forks.run("train.py", *options, cwd=tmp_path).output
    (line,) = [line for line in output.splitlines() if line.startswith("RESULT")] or [output]
    result = json.loads(line.removeprefix("RESULT"))
    expected = [2 + 4 * (1 - step / 4) ** 2 for step in range(5)]
    assert result["class"] == "Toy"
    assert result["group"] == 2
    assert result["p"] == pytest.approx(expected)
    assert result["weight"] == pytest.approx(0.125 * sum(p + 2 for p in expected))
    assert result["mistake"] == "Invalid tau in optim_args: 10.0. It must be a number of at least 0 and less than 10."
