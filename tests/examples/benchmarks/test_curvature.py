"""CurvatureCallback in real runs of the Trainer."""

import pytest
import torch
from premise.callback import CurvatureCallback
from trainer_model import TinyData, TinyModel
from transformers import Trainer, TrainingArguments

import hf_lpsgd  # noqa: F401

KEYS = {"best_p", "decrease_p2", "gradient_spread", "curvature_spread", "curvature_seconds"}


@pytest.fixture
def make_trainer(tmp_path):
    def make(model=None, **arguments):
        torch.manual_seed(0)
        quiet = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
        args = TrainingArguments(
            str(tmp_path / "out"),
            **{"optim": "lpsgdm", "learning_rate": 1e-2, "per_device_train_batch_size": 4, **quiet, **arguments},
        )
        return Trainer(model or TinyModel(), args, train_dataset=TinyData(40))

    return make


def batches_of(trainer, number=2):
    collate = trainer.data_collator
    examples = [trainer.train_dataset[index] for index in range(8 * number)]
    return [dict(collate(examples[start : start + 8])) for start in range(0, len(examples), 8)]


def train(make_trainer, moments=4, **arguments):
    trainer = make_trainer(**{"max_steps": 10, "logging_steps": 100, **arguments})
    if moments:
        trainer.add_callback(CurvatureCallback(batches_of(trainer), moments=moments, probes=2))
    trainer.train()
    return trainer


@pytest.mark.parametrize("optim", ["lpsgdm", "adamw_torch"])
def test_the_moments_stand_in_the_logs_and_the_first_and_the_last_step_are_among_them(optim, make_trainer):
    trainer = train(make_trainer, optim=optim)
    entries = [entry for entry in trainer.state.log_history if "best_p" in entry]
    assert [entry["step"] for entry in entries] == [1, 4, 7, 10]
    for entry in entries:
        assert entry.keys() >= KEYS
        assert 2 <= entry["best_p"] <= 1000
        assert 0 < entry["decrease_p2"] <= 1
        assert ("decrease_p" in entry) == (optim == "lpsgdm")


def test_it_does_not_change_the_training(make_trainer):
    class WithDropout(TinyModel):
        def __init__(self):
            torch.manual_seed(0)
            super().__init__()
            for module in self.modules():
                if isinstance(module, torch.nn.Linear):
                    module.register_forward_hook(lambda *given: torch.nn.functional.dropout(given[2], 0.3))

    with_it, without = (
        train(make_trainer, moments=moments, model=WithDropout(), num_train_epochs=2, max_steps=20)
        for moments in (4, 0)
    )
    for ours, theirs in zip(with_it.model.parameters(), without.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_buffers_and_random_numbers_are_as_before():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5))

        def forward(self, x, labels):
            return {"loss": torch.nn.functional.cross_entropy(self.body(x), labels)}

    torch.manual_seed(0)
    model = Model()
    batch = {"x": torch.randn(8, 3), "labels": torch.randint(0, 4, (8,))}
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    state = torch.get_rng_state()
    measured = CurvatureCallback([batch, batch]).measure(model, p=5.0)
    assert measured["decrease_p"] <= 1
    assert torch.equal(torch.get_rng_state(), state)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])
    assert all(param.grad is None for param in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"batches": []}, "at least 1 batch"), ({"moments": 1}, "moments >= 2"), ({"probes": 0}, "probes >= 1")],
)
def test_bad_arguments_are_told(arguments, words):
    with pytest.raises(ValueError, match=words):
        CurvatureCallback(**{"batches": [{"x": torch.ones(1)}], **arguments})


def test_a_batch_without_labels_and_sharded_parameters_are_told():
    class Silent(torch.nn.Linear):
        def forward(self, x):
            return {"logits": super().forward(x)}

    callback = CurvatureCallback([{"x": torch.ones(2, 3)}])
    with pytest.raises(ValueError, match="give it batches with labels"):
        callback.measure(Silent(3, 1))
    model = torch.nn.Linear(3, 1)
    model.weight.ds_id = 0  # as ZeRO-3 marks its parameters
    with pytest.raises(ValueError, match="FSDP or ZeRO-3 has sharded"):
        callback.measure(model)
    with pytest.raises(ValueError, match="none"):
        callback.measure(torch.nn.ReLU())


def test_a_model_that_gives_a_tuple_and_batches_that_are_iterated_once_will_do():
    class Tuple(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x).square().mean(), "more"

    measured = CurvatureCallback({"x": torch.ones(2, 3) * scale} for scale in (1, 2)).measure(Tuple(3, 1))
    assert measured["gradient_noise"] > 0


def test_a_model_that_has_diverged_tells_no_best_p():
    class Lost(torch.nn.Linear):
        def forward(self, x):
            return {"loss": super().forward(x).square().mean() * float("nan")}

    measured = CurvatureCallback([{"x": torch.ones(2, 3)}]).measure(Lost(3, 1), p=20.0)
    assert measured.keys() == {"curvature_seconds"}


def test_a_compiled_model_is_refused_before_the_first_step(make_trainer):
    trainer = make_trainer(max_steps=2)
    trainer.add_callback(CurvatureCallback(batches_of(trainer)))
    trainer.model.compile()
    with pytest.raises(ValueError, match=r"which torch\.compile does not give"):
        trainer.train()
    assert trainer.state.global_step == 0
