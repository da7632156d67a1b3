"""`--optim lpsgd_layerwise` and `lpsgdm_layerwise` in real runs of the Trainer."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback

from hf_lpsgd import LPSGDM, step_in_backward, tie_p_schedule
from hf_lpsgd.wrappers import unwrap_optimizer

RUN = {
    "max_steps": 14,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 3,
    "weight_decay": 0.1,
    "max_grad_norm": 0.0,
    "eval_strategy": "steps",
    "eval_steps": 5,
    "save_strategy": "steps",
    "save_steps": 7,
}


class Tokens(torch.utils.data.Dataset):
    def __init__(self):
        self.tokens = torch.randint(0, 32, (40, 8), generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


def make_model(dtype=torch.float32):
    """Its embedding is its output layer too, and one layer is frozen."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=32, n_positions=8, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    model = GPT2LMHeadModel(config)
    model.transformer.h[0].mlp.requires_grad_(False)
    return model.to(dtype)


def run(make_trainer, optim, dtype=torch.float32, resume=None, **arguments):
    data = Tokens()
    trainer = make_trainer(optim=optim, model=make_model(dtype), dataset=data, **{**RUN, **arguments})
    trainer.eval_dataset = data
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(trainer):
    return {name: param.detach().clone() for name, param in trainer.model.named_parameters()}


def history(trainer):
    keys = ("loss", "learning_rate", "p", "grad_rms", "eval_loss", "step")
    return [{key: entry[key] for key in keys if key in entry} for entry in trainer.state.log_history[:-1]]


@pytest.mark.covering
@pytest.mark.parametrize("name", ["lpsgd", "lpsgdm"])
@pytest.mark.parametrize("optim_args", [None, "grad_rms=none", "grad_rms=0.01,p_schedule=linear"])
def test_it_trains_and_logs_what_the_ordinary_step_does_to_the_bit(name, optim_args, make_trainer):
    trainers = [run(make_trainer, optim, optim_args=optim_args) for optim in (name, f"{name}_layerwise")]
    ordinary, layerwise = map(weights, trainers)
    assert all(torch.equal(ordinary[key], layerwise[key]) for key in ordinary)
    assert history(trainers[0]) == history(trainers[1])
    assert not any("grad_norm" in entry for entry in trainers[1].state.log_history)  # it would be 0
    wte = "transformer.wte.weight"
    assert not torch.equal(layerwise[wte], make_model().transformer.wte.weight)
    assert all(param.grad is None for param in trainers[1].model.parameters())
    assert unwrap_optimizer(trainers[1].optimizer).backward_step is None  # it is over


@pytest.mark.parametrize("resumed_by", ["lpsgdm_layerwise", "lpsgdm"])
def test_a_resumed_run_is_the_uninterrupted_one(resumed_by, make_trainer, tmp_path):
    options = {"optim_args": "rounding=stochastic,momentum_dtype=float32", "dtype": torch.bfloat16}
    whole = run(make_trainer, "lpsgdm_layerwise", **options)
    resumed = run(make_trainer, resumed_by, resume=str(tmp_path / "out" / "checkpoint-7"), **options)
    assert resumed.state.global_step == 14
    one, other = weights(whole), weights(resumed)
    assert all(torch.equal(one[key], other[key]) for key in one)
    state = unwrap_optimizer(resumed.optimizer).state_dict()
    assert {entry["momentum_buffer"].dtype for entry in state["state"].values()} == {torch.float32}
    assert state["param_groups"][0]["rounded_steps"] == 14


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_grad_norm": 1.0}, r"cannot train with --max_grad_norm 1: .*norm of all gradients.*--max_grad_norm 0"),
        ({"gradient_accumulation_steps": 2}, r"cannot train with --gradient_accumulation_steps 2: .*Leave it at 1"),
        ({"torch_compile": True}, r"cannot train with torch.compile: .*all gradients at once"),
        ({"auto_find_batch_size": True}, r"cannot train with --auto_find_batch_size: "),
    ],
)
def test_what_cannot_be_honoured_is_refused_before_training(arguments, message, make_trainer):
    with pytest.raises(ValueError, match=message) as error:
        make_trainer(optim="lpsgdm_layerwise", **{**RUN, **arguments})
    assert str(error.value).startswith("--optim lpsgdm_layerwise cannot")
    assert str(error.value).endswith("or use --optim lpsgdm.")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("made_with", ["lpsgdm_layerwise", "adamw_torch"])
def test_what_is_changed_after_the_trainer_was_made_is_refused_as_by_its_constructor(made_with, make_trainer):
    trainer = make_trainer(optim=made_with, **{**RUN, "eval_strategy": "no"})
    trainer.args.optim, trainer.args.max_grad_norm = "lpsgdm_layerwise", 1.0  # as a search of hyperparameters does
    with pytest.raises(ValueError, match="--optim lpsgdm_layerwise cannot train with --max_grad_norm 1"):
        trainer.train()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fp16": True}, "fp16"),
        ({"mixed_precision": "fp16"}, "fp16"),
        ({"deepspeed_plugin": object()}, "DeepSpeed"),
        ({"fsdp": "full_shard"}, "FSDP"),
        ({"fsdp": True, "fsdp_plugin_args": {"fsdp_version": 1}}, "FSDP"),
        ({"deepspeed_plugin": object(), "fsdp_plugin_args": {"fsdp_version": 2}}, "DeepSpeed"),
        ({"_n_gpu": 2}, "the 2 GPUs of one process"),
    ],
)
def test_engines_and_loss_scaling_are_refused(changes, message, make_trainer):
    from hf_lpsgd.trainer.checks import check_layerwise

    args = make_trainer(**RUN).args
    check_layerwise(args, "it", "leave it")
    for name, value in changes.items():  # which these arguments cannot be given without a GPU
        args.__dict__[name] = value
    with pytest.raises(ValueError, match=f"it cannot train with {message}: "):
        check_layerwise(args, "it", "leave it")


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed"),
        ("ACCELERATE_USE_FSDP", "true", "FSDP"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "fp16"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "torch.compile"),
    ],
)
def test_what_a_launcher_requests_is_refused(variable, value, named, make_trainer, monkeypatch):
    from hf_lpsgd.trainer.checks import check_layerwise

    args = make_trainer(**RUN).args
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"^it cannot train with {named}: "):
        check_layerwise(args, "it", "leave it")


@pytest.mark.parametrize("by_launcher", [True, False])
def test_fsdp2_is_accepted_and_ddp_is_not(by_launcher, make_trainer, monkeypatch):
    from hf_lpsgd.trainer.checks import check_layerwise

    args = make_trainer(**RUN).args
    monkeypatch.setattr(type(args), "world_size", 2)
    with pytest.raises(
        ValueError, match=r"^it cannot train with 2 processes: .* Use FSDP2 \(fsdp_version: 2\) without offload, start"
    ):
        check_layerwise(args, "it", "leave it")
    if by_launcher:
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        monkeypatch.setenv("FSDP_VERSION", "2")
    else:
        args.fsdp, args.fsdp_plugin_args = True, {"fsdp_version": 2}
    check_layerwise(args, "it", "leave it")
    with monkeypatch.context() as patch:
        if by_launcher:
            patch.setenv("FSDP_OFFLOAD_PARAMS", "true")
        else:
            patch.setitem(args.fsdp_plugin_args, "cpu_offload", True)
        with pytest.raises(ValueError, match=r"it cannot train with FSDP: .* without offload"):
            check_layerwise(args, "it", "leave it")
    args.gradient_accumulation_steps = 2
    with pytest.raises(ValueError, match="it cannot train with --gradient_accumulation_steps 2"):
        check_layerwise(args, "it", "leave it")


@pytest.mark.parametrize("later", ["lpsgdm_layerwise", "lpsgdm", "adamw_torch"])
def test_a_run_that_was_interrupted_leaves_nothing_behind_for_the_next_one(later, make_trainer):
    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    model = make_model()
    quick = {**RUN, "eval_strategy": "no", "save_strategy": "no"}
    first = make_trainer(optim="lpsgdm_layerwise", model=model, dataset=Tokens(), callbacks=[Interrupt()], **quick)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    kept = {name: param.detach().clone() for name, param in model.named_parameters()}
    make_trainer(optim=later, model=model, dataset=Tokens(), **quick).train()
    with torch.no_grad():
        after = {name: param.clone() for name, param in model.named_parameters()}
    other = make_model()
    other.load_state_dict(kept, strict=False)
    make_trainer(optim=later, model=other, dataset=Tokens(), **quick).train()
    assert all(torch.equal(after[name], param) for name, param in other.named_parameters())


class OwnBackward(TrainerCallback):
    """Makes backward passes of its own, as one that looks at the gradients does."""

    def __init__(self, events):
        self.events = events
        self.grads = []

    def on_event(self, event, model):
        if event not in self.events:
            return
        before = {name: param.detach().clone() for name, param in model.named_parameters()}
        tokens = torch.zeros(1, 8, dtype=torch.long)
        model(input_ids=tokens, labels=tokens).loss.backward()
        self.grads += [param.grad for param in model.parameters() if param.requires_grad]
        model.zero_grad()
        assert all(torch.equal(before[name], param) for name, param in model.named_parameters())


def event(name):
    def on_event(self, args, state, control, model, **kwargs):
        self.on_event(name, model)

    return on_event


EVENTS = ["on_train_begin", "on_epoch_begin", "on_step_begin", "on_pre_optimizer_step", "on_optimizer_step"]
EVENTS += ["on_step_end", "on_evaluate", "on_save", "on_train_end"]
for name in EVENTS:
    setattr(OwnBackward, name, event(name))


@pytest.mark.parametrize("is_users", [False, True])
def test_a_backward_pass_of_a_callback_changes_no_weights_and_leaves_its_gradients(is_users, make_trainer):
    class Evaluating(Trainer):
        def compute_loss(self, model, inputs, **kwargs):
            loss = super().compute_loss(model, inputs, **kwargs)
            if model.training and self.state.global_step == 2:
                self.evaluate()  # in the middle of a training step
            return loss

    def train(callbacks):
        kwargs = {"model": make_model(), "dataset": Tokens(), "trainer_class": Evaluating, "callbacks": callbacks}
        if is_users:
            optimizer = LPSGDM(kwargs["model"].parameters(), lr=1e-3)
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
            tie_p_schedule(optimizer, scheduler, num_training_steps=14)
            step_in_backward(optimizer)
            kwargs |= {"optim": "adamw_torch", "optimizers": (optimizer, scheduler)}
        trainer = make_trainer(**{"optim": "lpsgdm_layerwise", **RUN, **kwargs})
        trainer.eval_dataset = Tokens()
        trainer.train()
        return trainer

    own = OwnBackward(EVENTS)
    trainer = train([own])
    assert len(own.grads) > 4 * 14
    assert not any(grad is None for grad in own.grads)
    plain = weights(train([]))
    assert all(torch.equal(plain[name], param) for name, param in weights(trainer).items())
    before = weights(trainer)
    trainer.add_callback(OwnBackward(EVENTS))
    trainer.evaluate()
    assert all(torch.equal(before[name], param) for name, param in weights(trainer).items())


class Interrupted(Trainer):
    """Its third training step ends in a KeyboardInterrupt, in the forward pass or the backward pass."""

    where = None

    def compute_loss(self, model, inputs, **kwargs):
        loss = super().compute_loss(model, inputs, **kwargs)
        if self.state.global_step == 2 and self.where == "forward":
            raise KeyboardInterrupt
        if self.state.global_step == 2 and self.where == "backward":
            self.where = None
            self.weight = list(model.parameters())[2]  # in the first layer, so that the others are updated already
            self.hook = self.weight.register_hook(self.interrupt)
        return loss

    def interrupt(self, grad):
        self.hook.remove()
        raise KeyboardInterrupt


class InterruptedTokens(Tokens):
    def __getitem__(self, index):
        self.count = getattr(self, "count", 0) + 1
        if self.count == 9:  # in the third batch
            raise KeyboardInterrupt
        return super().__getitem__(index)


@pytest.mark.parametrize("where", ["data", "forward", "backward", "on_step_begin", "on_step_end"])
def test_whatever_interrupts_a_training_takes_the_step_out_of_the_backward_pass(where, make_trainer):
    class Interrupt(OwnBackward):
        def on_event(self, event, model):
            if event == where:
                raise KeyboardInterrupt

    def interrupted(model):
        trainer = make_trainer(
            optim="lpsgdm_layerwise",
            model=model,
            dataset=InterruptedTokens() if where == "data" else Tokens(),
            trainer_class=Interrupted,
            callbacks=[Interrupt([where])],
            **{**RUN, "eval_strategy": "no", "save_strategy": "no", "warmup_steps": 0, "optim_args": "grad_rms=none"},
        )
        trainer.where = where
        with pytest.raises(KeyboardInterrupt) as raised:
            trainer.train()
        return trainer, raised  # which keeps the frames of the training, as a notebook does

    model, own = make_model(), OwnBackward(["now"])
    trainer, raised = interrupted(model)
    own.on_event("now", model)
    assert own.grads
    assert not any(grad is None for grad in own.grads)
    optimizer = unwrap_optimizer(trainer.optimizer)
    assert optimizer.backward_step is None
    assert not any(param._post_accumulate_grad_hooks for param in model.parameters())

    trainer, raised = interrupted(model)  # and nothing but a loop of the user's own comes after it
    before, optimizer = weights(trainer), unwrap_optimizer(trainer.optimizer)
    tokens = torch.zeros(1, 8, dtype=torch.long)
    model.zero_grad()
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    wte = "transformer.wte.weight"
    assert not torch.equal(before[wte], weights(trainer)[wte])
    trainer, raised = interrupted(model)
    with step_in_backward(unwrap_optimizer(trainer.optimizer)):
        model(input_ids=tokens, labels=tokens).loss.backward()
    assert raised


def test_gradients_that_arrive_in_another_thread_as_on_a_gpu_are_those_of_the_training_step_too(make_trainer):
    def is_stepping(optimizer):
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(unwrap_optimizer(optimizer).backward_step.training.is_stepping).result()

    class Asking(Trainer):
        def training_step(self, *args, **kwargs):
            found.append(is_stepping(self.optimizer))
            return super().training_step(*args, **kwargs)

    class AskingCallback(TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer, **kwargs):
            found.append(is_stepping(optimizer))

    found = []
    quick = {**RUN, "max_steps": 3, "eval_strategy": "no", "save_strategy": "no"}
    arguments = {"optim": "lpsgdm_layerwise", "trainer_class": Asking, "callbacks": [AskingCallback()]}
    make_trainer(model=make_model(), dataset=Tokens(), **arguments, **quick).train()
    assert found == [False, True] * 3


def test_a_users_own_step_in_the_backward_pass_is_checked_and_kept(make_trainer):
    class Freed(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
            assert all(param.grad is None for param in model.parameters())

    def make(**arguments):
        model = make_model()
        optimizer = LPSGDM(model.parameters(), lr=1e-3)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        tie_p_schedule(optimizer, scheduler, num_training_steps=14)
        handle = step_in_backward(optimizer)
        arguments = {**RUN, **arguments, "optim": "adamw_torch", "eval_strategy": "no", "callbacks": [Freed()]}
        return make_trainer(model=model, dataset=Tokens(), optimizers=(optimizer, scheduler), **arguments), handle

    trainer, handle = make()
    optimizer = unwrap_optimizer(trainer.optimizer)
    for _ in range(2):
        trainer.train()
        assert optimizer.backward_step is handle
    trainer, _ = make(max_grad_norm=1.0)
    with pytest.raises(ValueError, match="An optimizer given to step_in_backward cannot train with --max_grad"):
        trainer.train()
