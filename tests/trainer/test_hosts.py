"""Programs that replace, purge or half import what the registration relies on: p is annealed and logged still."""

import os
import subprocess
import sys

import pytest
from paths import ROOT
from reference import annealed_p
from trainer_model import logged
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import DefaultFlowCallback

import hf_lpsgd
from hf_lpsgd.trainer.callback import LpScheduleCallback

COSINE = pytest.approx([annealed_p("cosine", 20.0, index, 10) for index in range(10)])


class Own(TrainerCallback):
    """Remembers what other callbacks, such as those of trackers, are given to report."""

    def __init__(self):
        self.reported = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "learning_rate" in logs:
            self.reported.append(logs["p"])


def test_default_callbacks_that_a_tool_has_replaced(make_trainer, monkeypatch):
    monkeypatch.setattr("transformers.trainer.DEFAULT_CALLBACKS", [DefaultFlowCallback])
    own = Own()
    trainer = make_trainer(callbacks=[own], max_steps=10)
    trainer.train()
    assert logged(trainer) == COSINE
    assert own.reported == COSINE


def test_wrong_options_are_refused_before_training_where_default_callbacks_were_replaced(make_trainer, monkeypatch):
    monkeypatch.setattr("transformers.trainer.DEFAULT_CALLBACKS", [DefaultFlowCallback])
    trainer = make_trainer(max_grad_norm=1.0, optim="lpsgdm_layerwise")
    with pytest.raises(ValueError, match="Add --max_grad_norm 0"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("removing", ["all replaced", "removed"])
def test_callbacks_that_the_user_has_replaced_in_a_trainer(make_trainer, removing):
    own = Own()
    trainer = make_trainer(callbacks=[own], max_steps=10)
    if removing == "removed":
        trainer.remove_callback(LpScheduleCallback)
    else:
        trainer.callback_handler.callbacks = [DefaultFlowCallback(), own]
    trainer.train()
    assert logged(trainer) == COSINE
    assert own.reported == COSINE


def test_a_trainer_whose_own_create_optimizer_asks_for_the_class(make_trainer, monkeypatch):
    class Mine(Trainer):
        def create_optimizer(self, model=None):
            cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = cls(self.model.parameters(), **kwargs)
            return self.optimizer

    monkeypatch.setattr("transformers.trainer.DEFAULT_CALLBACKS", [DefaultFlowCallback])
    trainer = make_trainer(trainer_class=Mine, max_steps=10)
    trainer.train()
    assert logged(trainer) == COSINE


def test_whoever_asks_for_the_class_without_a_trainer_is_given_it(make_trainer, monkeypatch):
    monkeypatch.setattr("transformers.trainer.DEFAULT_CALLBACKS", [DefaultFlowCallback])
    cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(make_trainer(optim_args="p_max=6").args)
    assert (cls, kwargs["p_max"]) == (hf_lpsgd.LPSGDM, 6)


TRAIN = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from trainer_model import TinyData, TinyModel

def train(optim="lpsgdm"):
    from transformers import Trainer, TrainingArguments
    given = dict(use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, logging_steps=1)
    args = TrainingArguments("out", optim=optim, per_device_train_batch_size=4, max_steps=4, **given)
    trainer = Trainer(TinyModel(), args, train_dataset=TinyData(16))
    trainer.train()
    names = [type(callback).__name__ for callback in trainer.callback_handler.callbacks]
    print("trained", [round(entry["p"], 3) for entry in trainer.state.log_history if "p" in entry], names)

def purge(*packages):
    for name in [name for name in sys.modules if name.split(".")[0] in packages]:
        del sys.modules[name]
"""
TRAINED = f"trained {[round(annealed_p('cosine', 20.0, index, 4), 3) for index in range(4)]}"
HOSTS = {
    "hf_lpsgd imported anew": """
import hf_lpsgd
train()
purge("hf_lpsgd")
import hf_lpsgd
train()
""",
    "hf_lpsgd imported anew before the Trainer": """
import hf_lpsgd
purge("hf_lpsgd")
import hf_lpsgd
train()
""",
    "hf_lpsgd imported while the Trainer is": """
class Plugin:
    def find_spec(self, name, path=None, target=None):
        if name == "transformers.hyperparameter_search":
            assert "transformers.trainer" in sys.modules
            sys.meta_path.remove(self)
            import hf_lpsgd

sys.meta_path.insert(0, Plugin())
from transformers import Trainer, TrainingArguments
train()
""",
}


@pytest.mark.parametrize("host", HOSTS)
def test_modules_imported_anew_or_in_the_midst_of_others(host, forks, tmp_path):
    (tmp_path / "host.py").write_text(TRAIN + HOSTS[host])
    if "while" in host:  # before the Trainer is, so not in a fork
        done = subprocess.run(
            [sys.executable, "host.py"],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
        )
        status, output = done.returncode, done.stdout
    else:
        done = forks.run("host.py", cwd=tmp_path)
        status, output = done.status, done.output
    assert status == 0, output
    lines = [line for line in output.splitlines() if line.startswith("trained")]
    assert len(lines) == HOSTS[host].count("train()")
    for line in lines:
        assert line.startswith(TRAINED)
        assert line.count("LpScheduleCallback") == 1
