"""A place that cannot be written to is told right after the arguments are read, before anything is loaded."""

import importlib
import os
import sys

import pytest
from run import output_paths

SCRIPTS = ["run_image_classification", "run_image_classification_no_trainer"]
LONG = "n" * 300


@pytest.fixture
def place(tmp_path):
    """A folder with a file and a link to nothing in it."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    (tmp_path / "sub").mkdir()
    return tmp_path


BAD = {
    "file": "'{place}/file' is not a folder",
    "file/below/it": "'{place}/file' is not a folder",
    "dangling": "'{place}/dangling' is a link to nothing",
    "dangling/x": "'{place}/dangling' is a link to nothing",
    LONG: "File name too long in '{place}'",
    f"new/{LONG}": "File name too long in '{place}'",
    "/proc/nowhere/x": "No such file or directory in '/proc'",
    "/dev/null/x": "'/dev/null' is not a folder",
}


@pytest.mark.parametrize("name", BAD)
def test_a_folder_that_cannot_be_written_to_is_told_with_the_reason(place, name):
    before = sorted(place.rglob("*"))
    assert output_paths.why_not_writable(place / name) == BAD[name].format(place=place)
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("name", ["", "sub", "new", "new/and/deeper", "sub/../other"])
def test_a_folder_that_can_be_written_to_passes_and_nothing_is_left_there(place, name):
    before = sorted(place.rglob("*"))
    assert output_paths.why_not_writable(place / name) is None
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("name", ["sub", "sub/new"])
def test_permissions_bind_users_other_than_root(place, name):
    (place / "sub").chmod(0o555)
    user = os.geteuid()
    for folder in (place, *place.parents[:2]):
        if user == 0:
            folder.chmod(0o755)
    try:
        if user == 0:
            os.seteuid(65534)
        problem = output_paths.why_not_writable(place / name)
    finally:
        os.seteuid(user)
        (place / "sub").chmod(0o755)
    assert problem is not None
    assert problem.startswith("Permission denied in ")


@pytest.fixture
def start(monkeypatch, example):
    """Runs a script that cannot load images; its status and what it printed."""

    def run(script, arguments, capsys):
        module = importlib.import_module(script)

        def load(*args, **kwargs):
            raise AssertionError("the images are being loaded")

        monkeypatch.setattr(module, "load_images", load)
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments])
        begin = module.main if script == SCRIPTS[0] else lambda: module.parse_arguments(arguments)
        with pytest.raises(SystemExit) as ended:
            begin()
        return ended.value.code, capsys.readouterr().err

    return run


FLAGS = {SCRIPTS[0]: ["--do_train", "--use_cpu"], SCRIPTS[1]: ["--cpu"]}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("name", ["file", "file/below/it", "dangling", LONG, "/proc/nowhere/x"])
def test_either_script_refuses_such_an_output_folder_in_one_line_before_it_loads_images(
    start, place, capsys, script, name
):
    folder = str(place / name)
    status, printed = start(script, [*FLAGS[script], "--output_dir", folder], capsys)
    reason = BAD[name].format(place=place)
    assert status == 2
    assert printed == (
        f"{script}.py: error: --output_dir {folder!r} cannot be written to: {reason}. "
        "Name a folder that can be written to\n"
    )


@pytest.mark.parametrize(("rank", "local_rank", "lines"), [(0, 0, 1), (1, 1, 0), (2, 0, 1), (3, 1, 0)])
def test_every_process_refuses_and_one_of_each_machine_tells(place, capsys, monkeypatch, rank, local_rank, lines):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    with pytest.raises(SystemExit) as ended:
        output_paths.check_output_folder("--output_dir", place / "file")
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == lines


@pytest.mark.parametrize("script", SCRIPTS)
def test_other_places_that_are_written_to_are_tried_too(start, place, capsys, script):
    arguments = [*FLAGS[script], "--output_dir", str(place / "new"), "--cache_dir", str(place / "file")]
    status, printed = start(script, arguments, capsys)
    assert status == 2
    assert f"error: --cache_dir '{place}/file' cannot be written to" in printed


def test_the_folder_of_logs_is_tried_where_logs_are_written(start, place, capsys, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(place / "file" / "logs"))
    arguments = [*FLAGS[SCRIPTS[0]], "--output_dir", str(place / "new"), "--report_to", "tensorboard"]
    status, printed = start(SCRIPTS[0], arguments, capsys)
    assert status == 2
    assert f"error: TENSORBOARD_LOGGING_DIR '{place}/file/logs' cannot be written to" in printed
    assert not (place / "new").exists()


def test_a_cache_that_is_there_need_not_be_writable(place, monkeypatch):
    def refuse(*args):
        raise AssertionError("tried")

    monkeypatch.setattr(output_paths, "check_output_folder", refuse)
    output_paths.check_cache_folder("--cache_dir", place / "sub")
    output_paths.check_cache_folder("--cache_dir", None)
    with pytest.raises(AssertionError):
        output_paths.check_cache_folder("--cache_dir", place / "file")


def test_a_checkpoint_that_cannot_be_deleted_is_named(run_example, place):
    (place / "run").mkdir()
    (place / "run" / "checkpoint-3").symlink_to(place / "sub")
    result = run_example("--do_train", "--overwrite_output_dir", folder=place / "run")
    told = f"cannot delete '{place}/run/checkpoint-3': it is a symbolic link; name another --output_dir"
    assert result.answer.endswith(f"error: --overwrite_output_dir {told}")
    assert (place / "sub").is_dir()


def test_curves_that_cannot_be_written_do_not_end_the_run(run_example, place):
    (place / "run" / "training_curves.png").mkdir(parents=True)
    small = ["--config_overrides", "hidden_size=8,intermediate_size=8,num_attention_heads=1,num_hidden_layers=1"]
    result = run_example("--do_train", "--max_steps", 1, *small, folder=place / "run")
    assert result.status == 0, result.output
    assert "curves:  not drawn. " in result.output
