"""How hf_lpsgd is installed: from this clone in place, and as a wheel where there is no compiler."""

import os
import shutil
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from launch import python
from paths import ROOT

import hf_lpsgd

IS_EDITABLE = Path(hf_lpsgd.__file__).is_relative_to(ROOT)


@pytest.mark.skipif(not IS_EDITABLE, reason="hf_lpsgd is not installed from this clone in place")
def test_in_the_folder_above_a_clone_named_hf_lpsgd_the_package_is_imported_not_the_clone(tmp_path):
    (tmp_path / "hf_lpsgd").symlink_to(ROOT, target_is_directory=True)
    (tmp_path / "program.py").write_text("import hf_lpsgd; print(hf_lpsgd.__file__, hf_lpsgd.LPSGDM.__name__)")
    done = python(tmp_path, "program.py")
    assert done.stdout.split() == [hf_lpsgd.__file__, "LPSGDM"], done.stderr


def copy_of_the_source(tmp_path):
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "hf_lpsgd", source / "hf_lpsgd", ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    return source


@pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="the source of hf_lpsgd is not beside its tests")
def test_without_a_compiler_the_wheel_is_for_every_platform_and_has_no_compiled_step(tmp_path):
    source = copy_of_the_source(tmp_path)
    # What an earlier build with a compiler would have left, of another kernel and of a module that is no more.
    for folder in ("lib", f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"):
        old = source / "build" / folder / "hf_lpsgd" / "optim" / "kernels"
        old.mkdir(parents=True)
        (old / "_cpu_kernel.so").touch()
        (old / "removed.py").touch()
    environment = {**os.environ, "CC": "no-such-compiler", "CXX": "no-such-compiler"}
    build = ["-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, source]
    done = python(tmp_path, *build, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "hf_lpsgd/optim/kernels/cpu.py" in names
    assert not [name for name in names if name.endswith((".so", "removed.py"))]


@pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="the source of hf_lpsgd is not beside its tests")
def test_a_kernel_that_cannot_be_compiled_any_more_is_not_left_in_place(tmp_path):
    source = copy_of_the_source(tmp_path)
    library = source / "hf_lpsgd" / "optim" / "kernels" / "_cpu_kernel.so"
    library.touch()
    (library.parent / "cpu_kernel.cpp").write_text("this is no C++")
    done = python(source, "setup.py", "-q", "build_ext", "--inplace")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not library.exists()
