"""The plain Accelerate loop, run as a script on one process and on two."""

import json
from pathlib import Path

import datasets
import pytest
import torch
from paths import LOOP_SCRIPT as SCRIPT
from PIL import Image
from reference import annealed_p
from safetensors.torch import load_file

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
pytest.importorskip("sklearn")

WORKER = Path(__file__).with_name("no_trainer_worker.py")
STEPS, WARMUP, P_MAX, LR = 8, 2, 20.0, 2e-3
EXPECTED_P = [P_MAX] * WARMUP + [annealed_p("cosine", P_MAX, i, STEPS - WARMUP) for i in range(STEPS - WARMUP)]

SHORT = ["--cpu", "--with_tracking", "--max_train_steps", str(STEPS), "--num_warmup_steps", str(WARMUP)]
# 6 batches per epoch. Dropout makes any slip in the random numbers visible.
SAVED = [*SHORT, "--batch_size", "250", "--checkpointing_steps", "3", "--config_overrides", "hidden_dropout_prob=0.1"]

PETS = ["--train_dir", "pets", "--validation_dir", "pets"]
SMALL_BATCHES = ["--per_device_train_batch_size", "8", "--per_device_eval_batch_size", "4"]
TINY = ["--config_overrides", "hidden_size=32,intermediate_size=32,num_attention_heads=2,num_hidden_layers=1"]

# Its last feature map is one pixel, so that batch norm cannot be trained on a batch of one image.
RESNET = ["--model_type", "resnet", "--config_overrides"]
RESNET += ["embedding_size=8,depths=[1,1,1,1],hidden_sizes=[8,8,8,8],layer_type=basic"]
# 18 images to train on.
ODD_PHOTOS = ["--cpu", "--num_epochs", "1", "--batch_size", "17", *RESNET, "--train_dir", "odd_photos"]

TWO = {
    "odd photos": ODD_PHOTOS,
    "plain": [*SHORT, "--batch_size", "16"],
    "split": [*SHORT, "--batch_size", "32", "--split_batches"],
    "accumulated": [*SHORT, "--batch_size", "16", "--gradient_accumulation_steps", "2"],
    "split and accumulated": [*SHORT, "--batch_size", "32", "--split_batches", "--gradient_accumulation_steps", "2"],
    # 3 batches per epoch on each process, so that every second accumulation is cut short by the epoch's end.
    "accumulated over epochs": [*SHORT, "--batch_size", "256", "--gradient_accumulation_steps", "2"],
    "saved": [*SAVED, "--gradient_accumulation_steps", "2"],
    "resumed": [*SAVED, "--gradient_accumulation_steps", "2", "--resume_from_checkpoint", "saved/step_3"],
}
ONE = {
    "plain": [*SHORT, "--batch_size", "32"],
    "accumulated": [*SHORT, "--batch_size", "32", "--gradient_accumulation_steps", "2"],
    "bf16": [*SHORT, "--mixed_precision", "bf16"],
    "trained": ["--cpu", "--num_epochs", "8", "--checkpointing_steps", "epoch"],
    "saved": SAVED,
    "resumed in an epoch": [*SAVED, "--resume_from_checkpoint", "saved/step_3"],
    "resumed at an epoch's end": [*SAVED, "--resume_from_checkpoint", "saved/step_6"],
    "resumed when done": ["--cpu", "--num_epochs", "8", "--resume_from_checkpoint", "trained/epoch_8"],
    "from a model": ["--cpu", "--max_train_steps", "1", "--lr", "1e-6", "--model_name_or_path", "trained"],
    "folders": ["--cpu", *PETS, "--num_train_epochs", "12", "--learning_rate", "3e-3", *SMALL_BATCHES, *TINY],
    "the paper's": [*SHORT, "--batch_size", "32", "--grad_rms", "none"],
    "measured": [*SHORT, "--grad_rms", "auto"],
    "given": [*SHORT, "--grad_rms", "0.25"],
    "odd photos": ODD_PHOTOS,
    "unused labels": ["--cpu", "--max_train_steps", "1", *RESNET, "--dataset_name", "unused_labels"],
    **{f"schedule {name}": [*SHORT, "--p_schedule", name] for name in ("linear", "lr", "constant")},
}
BAD = {
    "--p_schedule poly": "Invalid p schedule: 'poly'. It must be one of cosine, linear, lr, constant.",
    "--p_max 1": "Invalid p_max: 1.0. It must be a finite number of at least 2 "
    "(2 is SGD, 1e6 is sign descent in effect).",
    "--grad_rms atuo": "Invalid grad_rms: 'atuo'. It must be None, 'auto' or a finite number of at least 1e-30.",
    "--lr nan": "Invalid lr: nan. It must be a finite number of at least 0.",
    "--lr much": "argument --lr/--learning_rate: invalid float value: 'much'",
    "--batch_size 0": "--batch_size must be at least 1, not 0",
    "--checkpointing_steps 0": "--checkpointing_steps '0' is neither 'epoch' nor a whole number of at least 1",
    "--seed -1": "--seed must be at least 0, not -1",
    "--max_grad_norm nan": "--max_grad_norm must be at least 0, not nan",
    "--num_warmup_steps nan": "--num_warmup_steps nan is neither a number of steps nor a share of them",
    "--num_warmup_steps 1.5": "--num_warmup_steps 1.5 is neither a number of steps nor a share of them",
    "--resume_from_checkpoint nowhere": "--resume_from_checkpoint 'nowhere' is no folder that a save by "
    "--checkpointing_steps completed",
    "--resume_from_checkpoint cut/unfinished_step_3": "--resume_from_checkpoint 'cut/unfinished_step_3' is no folder "
    "that a save by --checkpointing_steps completed",
    "--optim lpsgdm": "unknown arguments: --optim lpsgdm; --help lists all",
    "--train_dir nowhere": "--train_dir 'nowhere': no such folder; it must hold one folder of images for each class",
    "--dataset_name pets --streaming": "--streaming: this loop needs to know how many images there are; "
    "run_image_classification.py does not",
    "--dataset_name unused_labels --train_split_name test": "the label column 'label' must hold class names or whole "
    "numbers from 0 in every row: row 0 has the label -1 in --train_split_name 'test'",
    "--num_train_epochs 0": "--num_epochs must be at least 1, not 0",
    "--dataset_name pets --model_type vitt": "--model_type 'vitt' is no known architecture. Did you mean vit? Try "
    "vit, resnet or cifar_resnet",
    "--model_name_or_path trained --image_size 8": "--image_size 8 is for a model from scratch, and "
    "--model_name_or_path has one: leave one out",
    "--epochs 3": "unknown arguments: --epochs 3. Did you mean --num_epochs? --help lists all",
}


def requests_for(argvs, folder, odd_photos):
    (folder / "odd_photos").symlink_to(odd_photos)
    requests = {name: {"argv": [*argv, "--output_dir", name]} for name, argv in argvs.items()}
    for name in {"cut"} & requests.keys():
        requests[name]["save_fails"] = True
    path = folder / "requests.json"
    path.write_text(json.dumps(requests))
    return path


@pytest.fixture(scope="module")
def two(forks, tmp_path_factory, odd_photos):
    """The folder in which two processes made the runs of TWO, once it is sure that there were two."""
    folder = tmp_path_factory.mktemp("two")
    runs = {"refused": ["--cpu", "--train_split_name", "nowhere"], **TWO}
    ranks = forks.run_ranks(2, WORKER, SCRIPT, requests_for(runs, folder, odd_photos), "results", cwd=folder)
    for rank in range(2):
        assert ranks[rank].status == 0, ranks[rank].output
        for name, result in json.loads((folder / f"results-{rank}.json").read_text()).items():
            assert result["status"] == (2 if name == "refused" else 0), (name, result["output"])
            assert name == "refused" or (result["processes"], result["distributed_type"]) == (2, "MULTI_CPU")
    return folder


@pytest.fixture(scope="module")
def one(forks, tmp_path_factory, odd_photos):
    """The folder in which one process made the runs of ONE and of BAD, and what came of each."""
    folder = tmp_path_factory.mktemp("one")
    for name, level in (("cat", 40), ("dog", 210)):
        (folder / "pets" / name).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (12, 12), (level + number,) * 3).save(folder / "pets" / name / f"{number}.png")
    (folder / "unused_labels").mkdir()
    for split, labels in (("train", [0, 1] * 4), ("validation", [1, 0]), ("test", [-1, -1])):
        rows = {"image": [Image.new("RGB", (12, 12))] * len(labels), "label": labels}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        data = datasets.Dataset.from_dict(rows, features=features)
        data.to_parquet(folder / f"unused_labels/{split}-00000-of-00001.parquet")
    alone = ["--cpu", *PETS, "--batch_size", "1", *RESNET]
    other = [*SHORT, "--resume_from_checkpoint", "saved/step_3", *TINY]
    runs = {
        **ONE,
        "cut": SAVED,
        "one at a time": alone,
        "another model": other,
        **{name: ["--cpu", *name.split()] for name in BAD},
    }
    requests = requests_for(runs, folder, odd_photos)
    run = forks.run(WORKER, SCRIPT, requests, "results", cwd=folder)
    assert run.status == 0, run.output
    results = json.loads((folder / "results-0.json").read_text())
    for name in ONE:
        assert results[name]["status"] == 0, (name, results[name]["output"])
        assert results[name]["processes"] == 1
    return folder, results


def logged(folder, key="p"):
    """What one run logged of `key`, as (step, value) pairs."""
    (path,) = {events.parent for events in (folder / "logs").glob("events*")}
    events = event_accumulator.EventAccumulator(str(path))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(key)]


def weights(folder):
    return load_file(folder / "model.safetensors")


def equal(actual, expected):
    return actual.keys() == expected.keys() and all(torch.equal(actual[name], expected[name]) for name in expected)


def accuracy_of(output):
    (line,) = [line for line in output.splitlines() if line.startswith("accuracy = ")]
    return float(line.removeprefix("accuracy = "))


@pytest.fixture(scope="module")
def trainer_p(tmp_path_factory):
    """The p that a Trainer logs over as many optimizer steps."""
    from accelerate.state import AcceleratorState, GradientState
    from transformers import Trainer, TrainingArguments

    import hf_lpsgd  # noqa: F401  # makes `optim="lpsgdm"` known

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()

    class Model(torch.nn.Linear):
        def forward(self, inputs):
            return {"loss": super().forward(inputs).square().mean()}

    arguments = TrainingArguments(
        output_dir=str(tmp_path_factory.mktemp("trainer")),
        optim="lpsgdm",
        optim_args=f"p_max={P_MAX}",
        max_steps=STEPS,
        warmup_steps=WARMUP,
        lr_scheduler_type="cosine",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(Model(3, 3), arguments, train_dataset=[{"inputs": torch.ones(3)}] * 8)
    trainer.train()
    return [entry["p"] for entry in trainer.state.log_history if "learning_rate" in entry]


@pytest.mark.parametrize("name", [name for name in TWO if name != "odd photos"])
def test_two_processes_log_the_p_of_a_trainer_that_makes_as_many_optimizer_steps(name, two, trainer_p):
    start = 4 if name == "resumed" else 1
    assert trainer_p == pytest.approx(EXPECTED_P)
    assert [step for step, _ in logged(two / name)] == list(range(start, STEPS + 1))
    assert [p for _, p in logged(two / name)] == pytest.approx(trainer_p[start - 1 :], rel=1e-6)


@pytest.mark.parametrize("name", ["plain", "split", "accumulated over epochs"])
def test_two_processes_log_the_learning_rate_of_one(name, two, one):
    folder, _ = one
    assert logged(two / name, "learning_rate") == logged(folder / "plain", "learning_rate")
    assert logged(two / name, "learning_rate")[WARMUP][1] == pytest.approx(LR)


@pytest.mark.parametrize(
    ("name", "same"),
    [("plain", "plain"), ("split", "plain"), ("accumulated", "accumulated"), ("split and accumulated", "accumulated")],
)
def test_two_processes_end_as_one_does_with_the_same_global_batch(name, same, two, one):
    expected, actual = weights(one[0] / same), weights(two / name)
    for key, tensor in expected.items():
        # The true gradient of a key bias is zero, and steps that are nearly signs make much of what rounding leaves.
        if not key.endswith(("k_proj.bias", "key.bias")):
            assert (actual[key] - tensor).norm() <= 1e-3 * tensor.norm(), key
    assert [loss for _, loss in logged(two / name, "loss")] == pytest.approx(
        [loss for _, loss in logged(one[0] / same, "loss")], rel=1e-4
    )
    (_, of_two), (_, of_one) = (logged(folder, "accuracy")[-1] for folder in (two / name, one[0] / same))
    assert of_two == pytest.approx(of_one, abs=0.01)  # of 360 images, rounding can decide about some


@pytest.mark.parametrize("name", ["resumed in an epoch", "resumed at an epoch's end"])
def test_a_resumed_run_ends_bit_for_bit_as_the_uninterrupted_one(name, one):
    folder, _ = one
    assert equal(weights(folder / name), weights(folder / "saved"))
    first = 4 if name == "resumed in an epoch" else 7
    for key in ("p", "learning_rate", "loss"):
        assert logged(folder / name, key) == logged(folder / "saved", key)[first - 1 :]


def test_a_resumed_run_of_two_processes_ends_bit_for_bit_as_the_uninterrupted_one(two):
    assert equal(weights(two / "resumed"), weights(two / "saved"))


@pytest.mark.parametrize("schedule", ["linear", "lr", "constant"])
def test_p_follows_the_schedule_asked_for(schedule, one):
    folder = one[0] / f"schedule {schedule}"
    if schedule == "lr":
        expected = [2 + (P_MAX - 2) * lr / LR for _, lr in logged(folder, "learning_rate")]
    else:
        falling = [annealed_p(schedule, P_MAX, i, STEPS - WARMUP) for i in range(STEPS - WARMUP)]
        expected = [P_MAX] * WARMUP + falling
    assert [p for _, p in logged(folder)] == pytest.approx(expected, rel=1e-6)


def test_the_reference_size_of_the_gradient_is_logged_where_there_is_one(one):
    measured = [size for _, size in logged(one[0] / "measured", "grad_rms")]
    assert len(set(measured)) == STEPS
    assert min(measured) > 0
    assert [size for _, size in logged(one[0] / "given", "grad_rms")] == [0.25] * STEPS
    assert len(logged(one[0] / "plain", "grad_rms")) == STEPS
    with pytest.raises(KeyError, match="grad_rms"):
        logged(one[0] / "the paper's", "grad_rms")


def test_bf16_computes_in_bf16_and_keeps_float32_weights(one):
    folder, _ = one
    assert {tensor.dtype for tensor in weights(folder / "bf16").values()} == {torch.float32}
    (_, low), (_, full) = (logged(folder / name, "loss")[0] for name in ("bf16", "schedule constant"))
    assert low != full
    assert low == pytest.approx(full, rel=0.02)


def test_eight_epochs_recognize_nine_digits_in_ten_and_leave_a_state_for_each(one):
    folder, results = one
    assert accuracy_of(results["trained"]["output"]) > 0.9
    assert {path.name for path in (folder / "trained").iterdir() if path.is_dir()} == {
        f"epoch_{n}" for n in range(1, 9)
    }


def test_a_run_resumed_when_it_was_done_changes_nothing(one):
    folder, results = one
    assert equal(weights(folder / "resumed when done"), weights(folder / "trained"))
    assert accuracy_of(results["resumed when done"]["output"]) == accuracy_of(results["trained"]["output"])


def test_the_saved_folder_works_in_a_pipeline(one):
    from transformers import pipeline

    folder, results = one
    classify = pipeline("image-classification", model=str(folder / "folders"), trust_remote_code=True)
    assert [classify(Image.new("RGB", (12, 12), (level,) * 3))[0]["label"] for level in (44, 214)] == ["cat", "dog"]
    assert accuracy_of(results["folders"]["output"]) == 1.0


def test_a_trained_model_can_be_started_from(one):
    output = one[1]["from a model"]["output"]
    assert accuracy_of(output) == pytest.approx(accuracy_of(one[1]["trained"]["output"]), abs=0.01)


def test_two_processes_answer_bad_input_in_one_line(two):
    answers = [json.loads((two / f"results-{rank}.json").read_text())["refused"]["output"] for rank in range(2)]
    (line,) = answers[0].splitlines()
    assert "--train_split_name 'nowhere': the dataset has no such split" in line
    assert answers[1] == ""


@pytest.mark.parametrize("processes", [1, 2])
def test_odd_photos_are_trained_on_and_what_is_odd_is_told_once(processes, one, two):
    folder = one[0] if processes == 1 else two
    ranks = [json.loads((folder / f"results-{n}.json").read_text())["odd photos"]["output"] for n in range(processes)]
    config = json.loads((folder / "odd photos/config.json").read_text())
    assert (config["image_size"], list(config["id2label"].values())) == (16, ["caf\u00e9", "dog", "newt"])
    told = ["left out 2 files (dog/live.heic, dog/notes.txt)", "trained on and not evaluated: newt"]
    told += ["input: 16 x 16 pixels, mean 0.5, deviation 0.5 (looked at 18 of 18 images: "]
    # Several processes are given whole batches, filled up with images of the next.
    told += ["warning: the last batch of each epoch, of one image, is left out"] if processes == 1 else []
    assert [ranks[0].count(line) for line in told] == [1] * len(told), ranks[0]
    assert ranks[0].count("warning: ") == len(told) - 1
    assert all("warning" not in output and "input:" not in output for output in ranks[1:])


def test_batches_of_one_image_are_refused_before_training(one):
    result = one[1]["one at a time"]
    assert result["status"] == 2
    (line,) = result["output"].splitlines()
    assert "this model cannot be trained on one image at a time: " in line
    assert line.endswith("Pass --batch_size 2 or more")


def test_a_state_of_another_model_is_refused_in_one_line(one):
    result = one[1]["another model"]
    assert result["status"] == 2
    line = result["output"].splitlines()[-1]
    assert (
        "error: --resume_from_checkpoint 'saved/step_3' cannot be loaded into this model: size mismatch for " in line
    )


def test_labels_of_a_split_that_is_not_used_do_not_matter(one):
    config = json.loads((one[0] / "unused labels/config.json").read_text())
    assert list(config["id2label"].values()) == ["0", "1"]


def test_a_save_that_was_cut_off_does_not_look_complete(one):
    folder, results = one
    assert results["cut"]["status"] == 1
    assert "cut off" in results["cut"]["output"]
    assert {path.name for path in (folder / "cut").iterdir()} == {"logs", "unfinished_step_3"}
    assert (folder / "cut" / "unfinished_step_3" / "model.safetensors").is_file()
    assert {path.name for path in (folder / "saved").iterdir() if path.is_dir()} == {"logs", "step_3", "step_6"}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_is_answered_in_one_line(arguments, one):
    result = one[1][arguments]
    assert result["status"] == 2
    assert result["output"] == f"run_image_classification_no_trainer.py: error: {BAD[arguments]}\n"
