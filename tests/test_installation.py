"""The editable install of this clone, seen from folders where a wrong one would be shadowed."""

import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

import hf_lpsgd

IS_EDITABLE = Path(hf_lpsgd.__file__).is_relative_to(ROOT)


@pytest.mark.skipif(not IS_EDITABLE, reason="hf_lpsgd is not installed from this clone in place")
def test_in_the_folder_above_a_clone_named_hf_lpsgd_the_package_is_imported_not_the_clone(tmp_path):
    (tmp_path / "hf_lpsgd").symlink_to(ROOT, target_is_directory=True)
    (tmp_path / "program.py").write_text("import hf_lpsgd; print(hf_lpsgd.__file__, hf_lpsgd.LPSGDM.__name__)")
    command = [sys.executable, "program.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == [hf_lpsgd.__file__, "LPSGDM"], done.stderr
