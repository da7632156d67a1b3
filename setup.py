"""The compiled CPU step as a plain shared library: one wheel per platform serves every Python.

Everything else about the package is in pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext


class BuildAnew(build):
    """Leaves nothing of an earlier build in the package: neither a removed module nor an old library."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BuildPlainLibrary(build_ext):
    """Names the library without the version of the Python that builds it, since it uses nothing of Python's."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def run(self) -> None:
        # Where there is no compiler, or it fails, the package is installed without the library, not with an old one.
        for extension in self.extensions:
            Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
        super().run()


class WheelForEveryPython(bdist_wheel):
    """Tags the wheel with its platform, or with none where there was no compiler for the library."""

    def get_tag(self) -> tuple[str, str, str]:
        platform = super().get_tag()[2]
        compiled = any(Path(self.bdist_dir).rglob("_cpu_kernel.so"))
        return "py3", "none", platform if compiled else "any"


setup(cmdclass={"build": BuildAnew, "build_ext": BuildPlainLibrary, "bdist_wheel": WheelForEveryPython})
