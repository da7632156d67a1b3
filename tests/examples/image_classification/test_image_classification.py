"""The example as its users run it: whole processes, real training on the digits and on folders of images."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from images.sources import load_digits
from launch import python
from paths import TRAINER_SCRIPT as SCRIPT
from PIL import Image
from safetensors.torch import load_file, save_file
from versions import resumes_processes_on_a_cpu

TIMING = ("runtime", "samples_per_second", "steps_per_second")
LPSGDM = ["--use_cpu", "--disable_tqdm", "true", "--optim", "lpsgdm", "--optim_args"]
TINY = ["--config_overrides", "hidden_size=32,intermediate_size=32,num_attention_heads=2,num_hidden_layers=1"]


def history_of(folder):
    """What a run logged, without what it measured of time."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [{key: value for key, value in entry.items() if not key.endswith(TIMING)} for entry in history]


class Run:
    """One run of the script in a process of its own."""

    def __init__(self, forks, arguments, folder):
        self.folder = folder
        self.fork = forks.start(SCRIPT, *arguments, "--output_dir", folder)

    def wait(self):
        self.fork.wait()
        return self

    def ok(self):
        assert self.wait().status == 0, self.output
        return self

    @property
    def status(self):
        return self.fork.status

    @property
    def output(self):
        return self.fork.output

    def weights(self, checkpoint=""):
        return load_file(self.folder / checkpoint / "model.safetensors")

    @property
    def state(self):
        return json.loads((self.folder / "trainer_state.json").read_text())

    @property
    def history(self):
        return history_of(self.folder)


@pytest.fixture(scope="module")
def digits_run(forks, tmp_path_factory):
    """Two epochs on the digits; the run that several tests look at."""
    arguments = ["--do_train", "--do_eval", *LPSGDM, "p_max=20,p_schedule=cosine", "--num_train_epochs", 2]
    return Run(forks, arguments, tmp_path_factory.mktemp("digits") / "run").ok()


@pytest.fixture(scope="module")
def image_folders(tmp_path_factory):
    """Dark cats and light dogs, not square; there is no cat to evaluate on."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    (root / "validation/cat").mkdir(parents=True)
    for name, count, light in (("train/cat", 8, 40), ("train/dog", 8, 200), ("validation/dog", 4, 200)):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(light - 30, light + 30, (20, 24, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_last_lines_tell_the_accuracy_and_where_everything_is(digits_run):
    accuracy, *places = digits_run.output.splitlines()[-6:]
    results = json.loads((digits_run.folder / "all_results.json").read_text())
    assert accuracy == f"accuracy = {results['eval_accuracy']:.3f}"
    assert [line.split(":")[0] for line in places] == ["model", "card", "curves", "metrics", "state"]
    assert all(Path(line.split(":", 1)[1].strip()).exists() for line in places)
    assert (digits_run.folder / "training_curves.png").read_bytes().startswith(b"\x89PNG")


def test_history_holds_loss_accuracy_learning_rate_and_p(digits_run):
    p = [entry["p"] for entry in digits_run.history if "p" in entry]
    assert p[0] <= 20
    assert p == sorted(p, reverse=True)
    assert p[-1] < 3
    for key in ("loss", "learning_rate", "eval_accuracy"):
        assert any(key in entry for entry in digits_run.history)


def test_reported_accuracy_is_that_of_the_saved_model(digits_run):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(digits_run.folder).eval()
    data = load_digits()["validation"]
    pixels = AutoImageProcessor.from_pretrained(digits_run.folder)(data[:]["image"], return_tensors="pt")
    with torch.no_grad():
        predicted = model(**pixels).logits.argmax(-1)
    right = (predicted == torch.tensor(data[:]["label"])).double().mean().item()
    results = json.loads((digits_run.folder / "all_results.json").read_text())
    assert results["eval_accuracy"] == pytest.approx(right, abs=1e-12)
    assert right > 0.15  # better than chance already


@pytest.mark.parametrize("schedule", ["cosine", pytest.param("lr", marks=pytest.mark.exhaustive)])
def test_killed_and_resumed_run_equals_the_uninterrupted_one_bit_for_bit(forks, tmp_path, schedule):
    # Checkpoints every 10 steps, logs every 4, epochs of 23 steps: the kill is in the midst of all three. Dropout and
    # random shifts make any slip in the random numbers visible.
    steps = 60
    arguments = ["--do_train", "--do_eval", *LPSGDM, f"p_max=20,p_schedule={schedule}", "--max_steps", steps]
    arguments += ["--save_steps", 10, "--logging_steps", 4, "--eval_strategy", "steps", "--eval_steps", 10]
    arguments += ["--max_eval_samples", 60, "--config_overrides"]
    arguments += ["hidden_size=32,intermediate_size=32,num_attention_heads=2,hidden_dropout_prob=0.1"]
    whole = Run(forks, arguments, tmp_path / "whole").ok()

    killed = Run(forks, arguments, tmp_path / "killed")
    deadline = time.monotonic() + 120
    while not ((killed.folder / "checkpoint-10/trainer_state.json").exists() and killed.output.count("'loss'") >= 4):
        assert time.monotonic() < deadline, killed.output
        time.sleep(0.005)
    os.kill(killed.fork.pid, signal.SIGKILL)
    assert killed.wait().status == -signal.SIGKILL
    reached = max(int(path.name.split("-")[1]) for path in killed.folder.glob("checkpoint-*"))
    assert 10 <= reached < steps
    # As if killed again, in the midst of writing a checkpoint: this one must not be taken.
    (killed.folder / f"checkpoint-{steps - 1}").mkdir()
    shutil.copy(killed.folder / "checkpoint-10/model.safetensors", killed.folder / f"checkpoint-{steps - 1}")

    resumed = Run(forks, [*arguments, "--resume_from_checkpoint", "True"], killed.folder).ok()
    assert "keys in the checkpoint model" not in resumed.output
    assert same(resumed.weights(), whole.weights())
    assert not same(whole.weights(), whole.weights("checkpoint-10"))
    moments = [
        torch.load(run.folder / f"checkpoint-{steps}/optimizer.pt", weights_only=True) for run in (resumed, whole)
    ]
    assert moments[0]["param_groups"] == moments[1]["param_groups"]
    for index, kept in moments[1]["state"].items():
        assert same(moments[0]["state"][index], kept)
    assert resumed.history == whole.history
    assert sum("loss" in entry for entry in whole.history) == steps // 4


def test_load_best_model_at_end_restores_every_tensor(forks, tmp_path):
    arguments = ["--do_train", *LPSGDM, "p_max=20", "--max_steps", 24, "--learning_rate", "3e-3", *TINY]
    arguments += ["--eval_strategy", "steps", "--eval_steps", 8, "--save_steps", 8, "--load_best_model_at_end"]
    # Highest loss is best: so it is the first checkpoint, which differs from the last in every tensor.
    arguments += ["--metric_for_best_model", "loss", "--greater_is_better", "true"]
    run = Run(forks, arguments, tmp_path / "run").ok()
    assert run.state["best_model_checkpoint"].endswith("checkpoint-8")
    best, last = run.weights("checkpoint-8"), run.weights("checkpoint-24")
    assert same(run.weights(), best)
    # The key biases have no true gradient; every other tensor must have moved.
    assert all(not torch.equal(best[key], last[key]) for key in best if not key.endswith("key.bias"))


def test_resume_from_a_checkpoint_that_lacks_a_tensor_fails_and_names_it(forks, digits_run, tmp_path):
    broken = tmp_path / "checkpoint-5"
    broken.mkdir()
    shutil.copy(digits_run.folder / "config.json", broken)
    shutil.copy(digits_run.folder / "trainer_state.json", broken)
    weights = digits_run.weights()
    lost = next(key for key in weights if "attention" in key)
    del weights[lost]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    run = Run(forks, ["--do_train", "--use_cpu", "--resume_from_checkpoint", broken], tmp_path / "run").wait()
    assert run.status == 2
    assert "was not restored in full" in run.output.splitlines()[-1]
    assert "missing_keys" in run.output.splitlines()[-1]


def test_image_folders_train_and_keep_the_classes_of_both(forks, image_folders, tmp_path):
    arguments = ["--do_train", "--do_eval", *LPSGDM, "p_max=20", "--max_steps", 20, "--learning_rate", "3e-3", *TINY]
    arguments += ["--train_dir", image_folders / "train", "--validation_dir", image_folders / "validation"]
    run = Run(forks, [*arguments, "--dataloader_num_workers", 1], tmp_path / "run").ok()
    config = json.loads((run.folder / "config.json").read_text())
    assert config["id2label"] == {"0": "cat", "1": "dog"}
    assert (config["image_size"], config["num_channels"]) == (20, 3)
    assert "accuracy = 1.000" in run.output
    assert "16 images to train and 4 images to evaluate in 2 classes" in run.output


@pytest.fixture(scope="module")
def parquet_folder(tmp_path_factory):
    """A dataset with columns and splits of unusual names, its labels as text."""
    import datasets

    folder = tmp_path_factory.mktemp("parquet")
    features = datasets.Features({"img": datasets.Image(), "kind": datasets.Value("string")})
    images = [Image.new("RGB", (12, 12), (level, level, level)) for level in (10, 250) * 10]
    rows = datasets.Dataset.from_dict({"img": images, "kind": ["night", "day"] * 10}, features=features)
    rows.to_parquet(folder / "train-00000-of-00001.parquet")
    return folder


def test_local_dataset_with_text_labels_and_no_evaluation_split_trains(forks, parquet_folder, tmp_path):
    arguments = ["--do_train", "--do_eval", *LPSGDM, "p_max=20", "--max_steps", 2, *TINY, "--dataset_name"]
    arguments += [parquet_folder, "--label_column_name", "kind", "--train_val_split", "0.2", "--max_train_samples", 9]
    run = Run(forks, arguments, tmp_path / "run").ok()
    assert "9 images to train and 4 images to evaluate in 2 classes" in run.output
    assert json.loads((run.folder / "config.json").read_text())["id2label"] == {"0": "day", "1": "night"}


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_arguments_may_stand_in_a_file(forks, tmp_path, form):
    folder, values = tmp_path / "run", {"do_train": True, "use_cpu": True, "optim": "lpsgd", "max_steps": 1}
    values |= {"output_dir": str(folder), "max_train_samples": 32, "optim_args": "p_max=7", "learning_rate": 0.0625}
    file = tmp_path / f"arguments.{form}"
    file.write_text(json.dumps(values) if form == "json" else "".join(f"{k}: {v}\n" for k, v in values.items()))
    run = forks.run(SCRIPT, file)
    assert run.status == 0, run.output
    optimizer = torch.load(folder / "checkpoint-1/optimizer.pt", weights_only=True)
    assert [group["p_max"] for group in optimizer["param_groups"]] == [7, 7]
    assert optimizer["param_groups"][0]["initial_lr"] == 0.0625


def run_in_two(forks, arguments, folder):
    """Run the script in two processes; the output of each."""
    ranks = forks.run_ranks(2, SCRIPT, *arguments, "--output_dir", folder)
    outputs = [rank.output for rank in ranks]
    assert [rank.status for rank in ranks] == [0, 0], "".join(outputs)
    return outputs


# A checkpoint after 3 steps, between two logs.
TWO = [
    "--do_train",
    "--do_eval",
    *LPSGDM,
    "p_max=20",
    "--max_steps",
    6,
    "--save_steps",
    3,
    "--logging_steps",
    2,
    *TINY,
]


@pytest.fixture(scope="module")
def two(forks, tmp_path_factory):
    """A run of two processes: its folder, and the output of each."""
    folder = tmp_path_factory.mktemp("two") / "whole"
    return folder, run_in_two(forks, TWO, folder)


def test_two_processes_share_the_work_and_only_the_first_prints(two):
    folder, outputs = two
    assert "accuracy = " in outputs[0]
    assert all(word not in outputs[1] for word in ("accuracy", "'loss'", "images to train"))
    # 6 steps of 2 x 64 images, of 1,437.
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["epoch"] == pytest.approx(6 / 12)


@resumes_processes_on_a_cpu
def test_resumed_run_of_two_processes_equals_the_uninterrupted_one_bit_for_bit(forks, two, tmp_path):
    folder, _ = two
    run_in_two(forks, [*TWO, "--resume_from_checkpoint", folder / "checkpoint-3"], tmp_path / "resumed")
    assert same(*(load_file(run / "model.safetensors") for run in (tmp_path / "resumed", folder)))
    assert history_of(tmp_path / "resumed") == history_of(folder)


def test_two_processes_leave_out_the_same_bad_images(forks, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (16, 16), (number, 90, 0)).save(tmp_path / "images" / name / f"{number}.png")
    for name in ("cat/0.png", "cat/11.png", "dog/3.png"):  # rows 0, 3 and 17: of both processes
        (tmp_path / "images" / name).write_bytes(b"no image at all")
    arguments = ["--do_train", *LPSGDM, "p_max=20", "--max_steps", 2, "--per_device_train_batch_size", 4, *TINY]
    folder = tmp_path / "images"
    arguments += ["--train_dir", folder, "--validation_dir", folder, "--on_bad_image", "skip"]
    outputs = run_in_two(forks, arguments, tmp_path / "run")
    assert "left out 3 of 24 images to train" in outputs[0]
    assert "21 images to train" in outputs[0]
    assert all(f"{name}) cannot be decoded" in outputs[0] for name in ("cat/0.png", "cat/11.png", "dog/3.png"))
    assert "left out" not in outputs[1]


def test_two_processes_train_on_odd_photos_and_tell_once_what_is_odd(forks, odd_photos, tmp_path):
    arguments = ["--do_train", "--do_eval", *LPSGDM, "p_max=20", "--max_steps", 2, *TINY, "--train_dir", odd_photos]
    arguments += ["--per_device_train_batch_size", 17, "--model_type", "vit"]
    outputs = run_in_two(forks, arguments, tmp_path / "run")
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["image_size"], list(config["id2label"].values())) == (16, ["caf\u00e9", "dog", "newt"])
    told = ["left out 2 files (dog/live.heic, dog/notes.txt)", "trained on and not evaluated: newt"]
    told += ["input: 16 x 16 pixels, mean 0.5, deviation 0.5 (looked at 18 of 18 images: "]
    assert [outputs[0].count(line) for line in told] == [1] * len(told), outputs[0]
    assert all(word not in outputs[1] for word in ("warning: ", "input: "))


def test_a_run_of_no_steps_and_one_that_is_complete_evaluate_and_end_well(forks, digits_run, tmp_path):
    arguments = ["--do_train", "--do_eval", *LPSGDM, "p_max=20", "--num_train_epochs"]
    none = Run(forks, [*arguments, 0, *TINY], tmp_path / "none").ok()
    assert none.state["global_step"] == 0
    assert "accuracy = " in none.output
    arguments[-2] = "p_max=20,p_schedule=cosine"
    checkpoint = max(digits_run.folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    done = Run(forks, [*arguments, 2, "--resume_from_checkpoint", checkpoint], tmp_path / "done").ok()
    assert same(done.weights(), digits_run.weights())
    assert done.output.count("accuracy = ") == 1


def test_earlier_checkpoints_are_neither_mixed_up_nor_deleted_unasked(forks, tmp_path):
    folder = tmp_path / "run"
    arguments = ["--do_train", "--use_cpu", "--max_steps", 1, *TINY]
    old = folder / "checkpoint-900"
    old.mkdir(parents=True)
    run = Run(forks, arguments, folder).wait()
    assert run.status == 2
    assert "checkpoint-900" in run.output
    assert "--overwrite_output_dir" in run.output
    assert old.exists()
    Run(forks, [*arguments, "--overwrite_output_dir"], folder).ok()
    assert not old.exists()
    assert (folder / "checkpoint-1").exists()


def test_script_runs_as_a_program_and_needs_nothing_from_the_test_harness(tmp_path):
    arguments = ["--do_train", *LPSGDM, "p_max=20", "--max_steps", "1", "--eval_strategy", "no", *TINY]
    done = python(tmp_path, SCRIPT, *arguments, "--output_dir", "run", env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/model.safetensors").exists()
    assert "accuracy =" not in done.stdout
