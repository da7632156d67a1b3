import warnings

import pytest
from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType

from hf_lpsgd import LPSGD, LPSGDM
from hf_lpsgd.optim.kernels import choice
from hf_lpsgd.trainer import OptimArgs, optim_args, validate_optim_args
from hf_lpsgd.trainer.optim_args import optimizer_class_and_kwargs

KEYS_OF_LPSGD = "p_max, eps, grad_rms, rounding, rounding_seed, foreach, fused"
KEYS_OF_LPSGDM = f"{KEYS_OF_LPSGD}, momentum, momentum_dtype, p_schedule, p_granularity"


def test_every_key_is_read_with_its_type():
    parsed = OptimArgs.parse(
        "lpsgdm",
        "p_max=20, momentum=0.95,eps=1e-6,p_schedule=lr,p_granularity=epoch,foreach=False,fused=none",
    )
    assert parsed.p_schedule == "lr"
    assert parsed.p_granularity == "epoch"
    assert parsed.optimizer_kwargs == {"p_max": 20.0, "momentum": 0.95, "eps": 1e-6, "foreach": False, "fused": None}
    assert type(parsed.optimizer_kwargs["p_max"]) is float


@pytest.mark.parametrize("text", [None, ""])
def test_without_optim_args_the_defaults_hold(text):
    parsed = OptimArgs.parse("lpsgd", text)
    assert (parsed.optimizer_kwargs, parsed.p_schedule, parsed.p_granularity) == ({}, "cosine", "step")


BAD = [
    ("lpsgdm", "p_max=1.5", "Invalid p_max in optim_args: 1.5. It must be a finite number of at least 2"),
    ("lpsgdm", "p_max=nan", "Invalid p_max in optim_args: nan. It must be a finite number of at least 2"),
    ("lpsgdm", "p_max=inf", "Invalid p_max in optim_args: inf. It must be a finite number of at least 2"),
    ("lpsgdm", "p_max=abc", "Invalid p_max in optim_args: 'abc'. It must be a finite number of at least 2"),
    ("lpsgdm", "p_max", "Invalid p_max in optim_args: ''. It must be a finite number of at least 2"),
    ("lpsgdm", "p_schedule=", "Invalid p_schedule in optim_args: ''. It must be one of cosine, linear, lr, constant."),
    ("lpsgdm", "p_max=2=3", "Invalid p_max in optim_args: '2=3'"),
    ("lpsgdm", "pmax=20", f"'pmax=20' has no known key. Did you mean p_max? The keys are {KEYS_OF_LPSGDM}"),
    ("lpsgdm", "beta1=0.9", f"'beta1=0.9' has no known key. The keys are {KEYS_OF_LPSGDM}"),
    ("lpsgdm", "betas=(0.9,0.95)", "'betas=(0.9' has no known key. The keys are"),
    ("lpsgdm", "Momentum=0.9", "'Momentum=0.9' has no known key. Did you mean momentum?"),
    ("lpsgdm", "nesterov=true", "'nesterov=true' has no known key. The keys are"),
    ("lpsgdm", "adam_epsilon=1e-8", "has no known key. The keys are"),
    ("lpsgdm", "max_grad_norm=1", "has no known key. Give it as --max_grad_norm."),
    ("lpsgdm", "order=6", "'order=6' has no known key. The keys are"),  # foreach is like it in its letters alone
    ("lpsgdm", "p_max=20,", "'p_max=20,' has an empty entry. Remove the extra comma."),
    ("lpsgdm", " ", "' ' has an empty entry."),
    ("lpsgdm", "p_max=1e999", "Invalid p_max in optim_args: inf"),
    ("lpsgdm", "p_max=20,p_max=6", "p_max is given twice"),
    (
        "lpsgdm",
        "momentum=1.0",
        "Invalid momentum in optim_args: 1.0. It must be a number of at least 0 and less than 1",
    ),
    ("lpsgdm", "eps=-1", "Invalid eps in optim_args: -1.0. It must be a finite number of at least 0"),
    (
        "lpsgdm",
        "p_schedule=exp",
        "Invalid p_schedule in optim_args: 'exp'. It must be one of cosine, linear, lr, constant.",
    ),
    ("lpsgdm", "p_granularity=batch", "Invalid p_granularity in optim_args: 'batch'. It must be one of step, epoch."),
    ("lpsgdm", "fused=maybe", "Invalid fused in optim_args: 'maybe'. It must be True, False or None."),
    ("lpsgdm", "foreach=1", "Invalid foreach in optim_args: '1'. It must be True, False or None."),
    ("lpsgdm", "lr=0.1", "'lr=0.1' has no known key. Give it as --learning_rate."),
    ("lpsgdm", "weight_decay=-0.1", "'weight_decay=-0.1' has no known key. Give it as --weight_decay."),
    ("lpsgd", "momentum=0.9", f"has no known key. The keys are {KEYS_OF_LPSGD}, p_"),
    ("lpsgd", "saturation=0.1", "'saturation=0.1' has no known key."),
]


@pytest.mark.parametrize(("optim", "text", "message"), BAD)
def test_bad_optim_args_stop_the_trainers_constructor_with_one_line(optim, text, message, make_trainer):
    with pytest.raises(ValueError, match="optim_args") as caught:
        make_trainer(optim=optim, optim_args=text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": -0.1}, r"Invalid lr \(--learning_rate\): -0.1"),
        ({"learning_rate": float("nan")}, r"Invalid lr \(--learning_rate\): nan"),
        ({"weight_decay": -0.1}, r"Invalid weight_decay \(--weight_decay\): -0.1"),
        ({"optim_args": "fused=true,foreach=true"}, "Only one can be True"),
        ({"optim_args": "p_schedule=lr,p_granularity=epoch"}, "knows no epochs"),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 1},
            "ReduceLROnPlateau does not count them. Use the p schedule 'lr'",
        ),
        pytest.param(
            {
                "lr_scheduler_type": "greedy",
                "eval_strategy": "steps",
                "eval_steps": 1,
                "optim_args": "p_schedule=linear",
            },
            "GreedyLR does not count them. Use the p schedule 'lr'",
            marks=pytest.mark.skipif(
                "greedy" not in list(SchedulerType), reason="this transformers has no scheduler named greedy"
            ),
        ),
    ],
)
def test_bad_training_arguments_stop_the_trainers_constructor_with_one_line(changes, message, make_trainer):
    with pytest.raises(ValueError, match=message):
        make_trainer(**changes)


def test_fused_where_it_cannot_be_is_told_by_the_trainers_constructor(make_trainer, monkeypatch):
    monkeypatch.setattr(choice, "FUSED_KERNELS", {})
    with pytest.raises(ValueError, match=r"Invalid fused in optim_args: True\..*none for the device cpu.*fused=None"):
        make_trainer(optim_args="fused=true")


def test_a_momentum_that_bfloat16_holds_too_coarsely_is_told_once_by_the_trainers_constructor(make_trainer):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = make_trainer(optim_args="momentum=0.995,momentum_dtype=bfloat16", max_steps=2)
        assert sum("momentum=0.995 is kept in bfloat16" in str(one.message) for one in caught) == 1
        trainer.train()
    assert sum("is kept in" in str(one.message) for one in caught) == 1


def test_other_optimizers_are_none_of_its_business(tmp_path):
    assert validate_optim_args(TrainingArguments(str(tmp_path), optim="sgd", optim_args="momentum=0.9")) is None


@pytest.mark.parametrize(("name", "cls"), [("lpsgd", LPSGD), ("lpsgdm", LPSGDM)])
def test_the_optimizer_gets_the_learning_rate_and_what_optim_args_say(name, cls, tmp_path):
    args = TrainingArguments(str(tmp_path), optim=name, optim_args="p_max=6,p_schedule=lr", learning_rate=0.25)
    defaults = {"grad_rms": "auto", "momentum": 0.6} if name == "lpsgdm" else {"grad_rms": "auto"}
    assert optimizer_class_and_kwargs(args) == (cls, {"lr": 0.25, **defaults, "p_max": 6.0})


def test_arguments_are_validated_as_a_trainer_is_made_and_before_each_training(make_trainer, monkeypatch):
    checked = []
    real = optim_args.check_schedule
    monkeypatch.setattr(optim_args, "check_schedule", lambda *given: checked.append(given) or real(*given))
    trainer = make_trainer(optim_args="p_max=7.5", max_steps=2)
    trainer.train()
    trainer.args.optim_args = "p_schedule=linear"
    trainer.train()
    assert checked == [("cosine", "step", None)] * 2 + [("linear", "step", None)]


@pytest.mark.parametrize("optim_args", [["p_max=6"], 6, {"p_max": 6}])
def test_optim_args_that_are_no_text_are_told_in_one_line(optim_args, make_trainer):
    with pytest.raises(ValueError, match=r"Invalid optim_args for lpsgdm: .* It must be text") as caught:
        make_trainer(optim_args=optim_args)
    assert "\n" not in str(caught.value)
