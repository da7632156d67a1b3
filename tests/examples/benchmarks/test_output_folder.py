"""A benchmark that could not write its results ends before it measures anything."""

import importlib
import sys

import pytest


@pytest.mark.parametrize(
    ("name", "flag", "place", "message"),
    [
        ("convergence_rate", "--output_dir", "file", "File exists; name a folder that can be written to"),
        ("convergence_rate", "--output_dir", "file/below", "Not a directory; name a folder that can be written to"),
        ("step_time", "--output_dir", "file/below", "Not a directory; name a folder that can be written to"),
        ("data_throughput", "--output", "file/below.json", "File exists; name a folder that can be written to"),
        ("data_throughput", "--output", "", "is a folder; name a file"),
    ],
)
def test_results_that_cannot_be_written_are_told_before_anything_is_measured(
    example, tmp_path, monkeypatch, capsys, name, flag, place, message
):
    if name == "step_time":
        pytest.importorskip("optimi")
    module = importlib.import_module(name)
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(module, "provenance", None)  # the first thing after the flags
    monkeypatch.setattr(sys, "argv", [f"{name}.py", flag, str(tmp_path / place)])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"{name}.py: error: {flag} ")
    assert last.endswith(message)
