"""The example with --push_to_hub: the real client against a Hub in memory."""

import hashlib
import json
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hub_server import Hub, Repo
from huggingface_hub.errors import HfHubHTTPError
from launch import Forks, fork_server, python
from paths import IMAGE_CLASSIFICATION, ROOT
from paths import TRAINER_SCRIPT as SCRIPT
from PIL import Image
from snippets import commands_of, demo_command, snippets_of, words_of

HERE = Path(__file__).parent
TOKEN, READ_ONLY = "hf_thisMayWrite0123456789", "hf_thisMayOnlyRead0123456789"
TINY = "--config_overrides hidden_size=32,intermediate_size=32,num_attention_heads=2,num_hidden_layers=1"
ARGUMENTS = f"""
    --do_train --do_eval --use_cpu --disable_tqdm true --optim lpsgdm --optim_args p_max=20 --learning_rate 3e-3 {TINY}
    --max_steps 6 --logging_steps 3 --save_steps 3 --eval_strategy steps --eval_steps 3 --max_train_samples 300
    --max_eval_samples 60 --push_to_hub --hub_always_push true
""".split()
STEPS = (3, 6)
SAVES = [f"Training in progress, step {step}" for step in STEPS]
PUSHED = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "training_curves.png"}


class Run:
    """One run of the script in a process of its own."""

    def __init__(self, launcher, arguments, folder, token=TOKEN):
        self.folder = folder
        env = {"HF_TOKEN": token} if token else {}
        self.fork = launcher.start(SCRIPT, *ARGUMENTS, *arguments, "--output_dir", folder, env=env)

    def wait(self):
        self.status, self.output = self.fork.wait().status, self.fork.output
        self.lines = self.output.splitlines()
        return self

    @property
    def card(self):
        return (self.folder / "README.md").read_text()

    def saved_everything(self):
        left = {path.name for path in self.folder.iterdir()}
        return left >= PUSHED | {"all_results.json", "trainer_state.json"} and "under way" not in self.card


@pytest.fixture(scope="module")
def module_hub():
    with Hub() as hub:
        hub.tokens |= {TOKEN: ("me", True), READ_ONLY: ("me", False)}
        yield hub


@pytest.fixture
def hub(module_hub):
    module_hub.requests.clear()
    yield module_hub
    module_hub.fault = lambda method, path: None


@pytest.fixture(scope="module")
def launcher(module_hub, tmp_path_factory):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": module_hub.url, "HF_HOME": str(tmp_path_factory.mktemp("hf_home"))}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    with fork_server(environment) as address:  # the address of the Hub is read at import
        launcher = Forks(tmp_path_factory.mktemp("launcher"), address, environment)
        yield launcher
        launcher.close()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def test_model_is_pushed_with_its_own_card_and_reads_back_into_a_fresh_cache(launcher, hub, tmp_path):
    run = Run(launcher, ["--hub_strategy", "end"], tmp_path / "my-digits").wait()
    assert run.status == 0, run.output
    assert run.lines[-1] == "hub:     me/my-digits"
    assert hub.repos["me/my-digits"].messages == ["initial commit", "End of training"]
    files = hub.files("me/my-digits")
    assert set(files) >= PUSHED
    for name, content in files.items():
        assert content == (run.folder / name).read_bytes(), name
    assert b"![" in files["README.md"]
    assert files["training_curves.png"].startswith(b"\x89PNG")

    card = yaml.safe_load(files["README.md"].split(b"---\n")[1])
    state = json.loads(files["trainer_state.json"])
    evaluations = [entry for entry in state["log_history"] if "eval_accuracy" in entry]
    metrics = {metric["type"]: metric["value"] for metric in card["model-index"][0]["results"][0]["metrics"]}
    assert metrics == {"accuracy": evaluations[-1]["eval_accuracy"], "loss": evaluations[-1]["eval_loss"]}
    rows = re.findall(r"^\| [\d.]+ \| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", run.card, re.MULTILINE)
    shown = {int(step): (loss, eval_loss, accuracy) for step, loss, eval_loss, accuracy in rows}
    losses = {entry["step"]: entry["loss"] for entry in state["log_history"] if "loss" in entry}
    assert shown == {
        entry["step"]: tuple(
            f"{number:.4f}" for number in (losses[entry["step"]], entry["eval_loss"], entry["eval_accuracy"])
        )
        for entry in evaluations[:-1]
    }
    assert "generated_from_trainer" not in card["tags"]

    Image.new("L", (40, 30), 90).save(tmp_path / "grey.png")
    reader = launcher.run(HERE / "read_from_hub.py", "me/my-digits", tmp_path / "grey.png")
    assert reader.status == 0, reader.output
    read = json.loads(reader.output.splitlines()[-1])
    assert read["fresh"]
    assert read["offline"] is None
    assert read["sha256"] == sha256((run.folder / "model.safetensors").read_bytes())
    assert read["size"] == {"height": 8, "width": 8}
    assert read["tags"] == card["tags"]
    assert {answer["label"] for answer in read["answers"]} == set(read["labels"]) == set(map(str, range(10)))
    assert sum(answer["score"] for answer in read["answers"]) == pytest.approx(1, abs=1e-5)


def test_model_with_code_of_its_own_is_pushed_with_it_and_works_where_the_examples_are_not(launcher, hub, tmp_path):
    small = ["--model_type", "cifar_resnet", "--config_overrides", "depths=[1,1],hidden_sizes=[8,16]"]
    run = Run(launcher, ["--hub_strategy", "end", *small], tmp_path / "my-resnet").wait()
    assert run.status == 0, run.output
    assert "cifar_resnet.py" in hub.files("me/my-resnet")

    Image.new("RGB", (40, 30), (90, 20, 60)).save(tmp_path / "picture.png")
    reader = [HERE / "read_from_hub.py", "me/my-resnet", tmp_path / "picture.png", "trust_remote_code"]
    done = python(tmp_path, *reader, env={**launcher.environment, "HF_HOME": str(tmp_path / "elsewhere")})
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout.splitlines()[-1])
    assert read["fresh"]
    assert read["module"].startswith("transformers_modules.")
    assert read["sha256"] == sha256((run.folder / "model.safetensors").read_bytes())
    assert sum(answer["score"] for answer in read["answers"]) == pytest.approx(1, abs=1e-5)


def test_the_push_on_the_page_works_after_the_demo_in_the_same_folder(launcher, hub, tmp_path):
    page = (IMAGE_CLASSIFICATION / "README.md").read_text()
    commands = [
        command for one in snippets_of(page) if one.language == "console" for command, _ in commands_of(one.text)
    ]
    (push,) = [command for command in commands if "--push_to_hub" in command]
    for command in (demo_command((ROOT / "Makefile").read_text()), push):
        words = words_of(command)
        assert words[1] == str(SCRIPT.relative_to(ROOT))
        arguments = [*words[2:], "--max_steps", "2", "--use_cpu", "--disable_tqdm", "true"]
        run = launcher.run(SCRIPT, *arguments, cwd=tmp_path, env={"HF_TOKEN": TOKEN})
        assert run.status == 0, run.output
    assert "hub:     me/digits" in run.output
    assert hub.repos["me/digits"].messages[-1] == "End of training"


@pytest.fixture(scope="module")
def strategy_runs(launcher, module_hub, tmp_path_factory):
    """One run for each strategy that pushes during training, with the token given on the command line."""
    runs = {}

    def slow(method, path):
        """Keep the first push of a run from reading its files until the next save has been at them, if it may."""
        strategy = path.split("/")[4] if "/preupload/" in path else None
        if strategy not in runs or len(module_hub.repos[f"me/{strategy}"].commits) > 1:
            return
        first, now = (runs[strategy].folder / name / "model.safetensors" for name in ("checkpoint-3", ""))
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline and now.read_bytes() == first.read_bytes():
            time.sleep(0.05)

    module_hub.fault = slow
    for strategy in ("every_save", "checkpoint", "all_checkpoints"):
        token = [f"--hub-token={TOKEN}"] if strategy == "checkpoint" else ["--hub_token", TOKEN]
        arguments = ["--hub_strategy", strategy, "--hub_model_id", f"me/{strategy}", *token]
        runs[strategy] = Run(launcher, arguments, tmp_path_factory.mktemp(strategy) / "run", token=None)
    for run in runs.values():
        run.wait()
    module_hub.fault = lambda method, path: None
    return runs


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints"])
def test_pushes_during_training_are_all_there_and_no_token_is_anywhere(strategy_runs, module_hub, strategy):
    run, hub = strategy_runs[strategy], module_hub
    assert run.status == 0, run.output
    repo = hub.repos[f"me/{strategy}"]
    twice = [message for save in SAVES for message in (save, f"{save}, checkpoint")]
    between = SAVES if strategy == "every_save" else twice
    assert repo.messages == ["initial commit", *between, "End of training"]

    for step, message in zip(STEPS, SAVES, strict=True):
        commit = repo.messages.index(message)
        files = hub.files(f"me/{strategy}", commit)
        saved = (run.folder / f"checkpoint-{step}/model.safetensors").read_bytes()
        assert sha256(files["model.safetensors"]) == sha256(saved), message
        assert set(files) >= PUSHED
        assert f"under way when this card was written: step {step} of 6." in files["README.md"].decode()
        folder = {"checkpoint": "last-checkpoint", "all_checkpoints": f"checkpoint-{step}"}.get(strategy)
        if folder is not None:
            files = hub.files(f"me/{strategy}", commit + 1)
            for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"):
                there = (run.folder / f"checkpoint-{step}" / name).read_bytes()
                assert sha256(files[f"{folder}/{name}"]) == sha256(there)
    files = hub.files(f"me/{strategy}")
    assert files["model.safetensors"] == (run.folder / "model.safetensors").read_bytes()
    assert b"under way" not in files["README.md"]
    assert b"--hub_strategy" in files["README.md"]

    everything = [path.read_bytes() for path in run.folder.rglob("*") if path.is_file()]
    everything += [*hub.blobs.values(), run.output.encode()]
    assert len(everything) > 30
    assert not any(TOKEN.encode() in content for content in everything)


def test_only_the_first_of_two_processes_pushes(launcher, hub, tmp_path):
    arguments = [*ARGUMENTS, "--hub_strategy", "every_save", "--ddp_backend", "gloo", "--hub_model_id", "me/two"]
    arguments += ["--output_dir", tmp_path / "two"]
    first, second = launcher.run_ranks(2, SCRIPT, *arguments, env={"HF_TOKEN": TOKEN})
    assert first.status == second.status == 0, first.output + second.output
    assert hub.repos["me/two"].messages == ["initial commit", *SAVES, "End of training"]
    assert sum(path == "/api/repos/create" for _, path in hub.requests) == 2
    assert "torchrun --nproc_per_node 2" in hub.files("me/two")["README.md"].decode()
    assert "hub:" not in second.output


@pytest.mark.parametrize(
    ("token", "target", "reason"),
    [
        (None, ["me/x"], "there is no token: log in with `hf auth login`, or set HF_TOKEN"),
        ("hf_nobodyKnowsThis0123456789", ["me/x"], "does not accept the token (401"),
        (READ_ONLY, ["me/there"], "does not let this token write there (403"),
        (TOKEN, ["you/x"], "does not let this token write there (403"),
        (TOKEN, ["me/there", "--hub_revision", "nowhere"], "has no such repository or revision (404"),
    ],
    ids=["none", "wrong", "read-only", "another's", "no such revision"],
)
def test_push_that_cannot_work_is_told_before_anything_is_done(launcher, hub, tmp_path, token, target, reason):
    hub.repos["me/there"] = Repo()
    run = Run(launcher, ["--hub_model_id", *target], tmp_path / "run", token=token).wait()
    assert run.status == 2
    assert "--push_to_hub cannot work, so nothing was begun: " in run.lines[-1]
    assert reason in run.lines[-1]
    assert len([line for line in run.lines if "error" in line.lower()]) == 1
    assert "'loss'" not in run.output
    assert token is None or token not in run.output
    assert not run.folder.exists()
    assert hub.repos["me/there"].messages == ["initial commit"]


class Answers:
    """Fails the requests whose numbers among those of a path are given, with the status given."""

    def __init__(self, **numbers):
        self.numbers, self.seen = numbers, {}

    def __call__(self, method, path):
        for word, (status, failing) in self.numbers.items():
            if word in path:
                self.seen[word] = self.seen.get(word, 0) + 1
                return status if self.seen[word] in failing else None


def test_a_hub_that_is_busy_for_a_moment_is_asked_again(launcher, hub, tmp_path):
    hub.fault = Answers(auth=(503, {1}), create=(429, {2}), preupload=(503, {1}))
    run = Run(launcher, ["--hub_strategy", "end"], tmp_path / "busy").wait()
    assert run.status == 0, run.output
    assert [hub.fault.seen[word] for word in ("auth", "create", "preupload")] == [2, 3, 2]
    assert hub.repos["me/busy"].messages == ["initial commit", "End of training"]


def test_a_hub_that_stays_busy_is_told_in_one_line_before_training(launcher, hub, tmp_path):
    hub.fault = Answers(create=(503, range(2, 100)))  # the second contact is the Trainer's own
    run = Run(launcher, [], tmp_path / "run").wait()
    assert run.status == 2
    assert "Traceback" not in run.output
    assert run.lines[-1].startswith(
        "run_image_classification.py: error: --push_to_hub cannot work, so nothing was trained"
    )
    assert "answered with an error (503: no)" in run.lines[-1]
    assert "'loss'" not in run.output


def test_a_model_that_a_busy_hub_does_not_give_is_told_so_in_one_line(example, monkeypatch, capsys):
    from models import loading

    response = SimpleNamespace(status_code=429, headers={}, reason_phrase="Too Many Requests", request=None)

    def busy(*args, **kwargs):
        try:
            raise HfHubHTTPError("too many", response=response)
        except HfHubHTTPError as error:
            raise OSError("Can't load it. Make sure that you don't have a local directory of that name.") from error

    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", busy)
    for read in (loading.pretrained, loading.check_classes):
        with pytest.raises(SystemExit):
            read(loading.ModelArguments(model_name_or_path="me/model"), {"id2label": {0: "a"}})
        (line,) = capsys.readouterr().err.splitlines()
        assert "'me/model' cannot be loaded: " in line
        assert "answered with an error (429: Too Many Requests); try again later" in line


def test_failed_background_push_is_told_and_the_last_push_brings_everything(launcher, hub, tmp_path):
    count = iter(range(100))
    hub.fault = lambda method, path: 500 if "/commit/" in path and next(count) == 0 else None
    run = Run(launcher, ["--hub_strategy", "every_save"], tmp_path / "unlucky").wait()
    assert run.status == 0, run.output
    assert hub.repos["me/unlucky"].messages == ["initial commit", SAVES[1], "End of training"]
    assert run.lines[-2].startswith("warning: 1 of 2 pushes during training failed; the first because ")
    assert run.lines[-2].endswith("answered with an error (500: Internal Server Error)")
    assert hub.files("me/unlucky")["model.safetensors"] == (run.folder / "model.safetensors").read_bytes()


def test_failed_last_push_ends_with_one_line_and_an_error_and_everything_saved(launcher, hub, tmp_path):
    hub.fault = lambda method, path: 500 if "/commit/" in path else None
    run = Run(launcher, ["--hub_strategy", "every_save"], tmp_path / "hopeless").wait()
    assert run.status == 2
    assert "Traceback" not in run.output
    assert "the push failed: " in run.lines[-1]
    assert "answered with an error (500: Internal Server Error). All is saved in" in run.lines[-1]
    assert f"hf upload me/hopeless {run.folder}" in run.lines[-1]
    assert "2 of 2 pushes during training failed" in run.lines[-2]
    assert hub.repos["me/hopeless"].messages == ["initial commit"]
    assert run.saved_everything()
    assert any(line.startswith("accuracy = ") for line in run.lines)


def test_network_that_goes_in_training_ends_with_one_line_and_everything_saved(launcher, hub, tmp_path):
    def fault(method, path):
        if path == "/api/validate-yaml":  # the first request after training
            hub.stop()

    hub.fault = fault
    try:
        run = Run(launcher, ["--hub_strategy", "end"], tmp_path / "run").wait()
        assert run.status == 2
        assert "Traceback" not in run.output
        assert f"the push failed: {hub.url} cannot be reached (" in run.lines[-1]
        assert run.saved_everything()

        # And from the very beginning.
        run = Run(launcher, [], tmp_path / "never").wait()
        assert run.status == 2
        assert "cannot be reached" in run.lines[-1]
        assert not run.folder.exists()
    finally:
        hub.start()


def test_push_without_training_is_refused(launcher, hub, tmp_path):
    arguments = ["--do_train", "false", "--model_name_or_path", tmp_path]
    run = Run(launcher, arguments, tmp_path / "run").wait()
    assert run.status == 2
    assert run.lines[-1].endswith("--push_to_hub needs --do_train: nothing was trained that could be pushed")
    assert hub.requests == []
