"""The suite against the wheel in dist/, on each Python and with the oldest and the newest versions of what it uses.

`nox --list` shows the sessions, and `nox --session "pinned-3.12"` runs one. `make dist` builds the wheel. The sessions
install it into a fresh environment, and run the tests from a copy of the repository without the package, so that
nothing but the installed wheel can be imported. Arguments after `--` are for pytest.
"""

import os
import re
import shutil
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["pinned"]
nox.options.error_on_missing_interpreters = True
os.environ.pop("PYTHONPATH", None)  # the package could be imported from there

ROOT = Path(__file__).parent
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
OLDEST = ["torch==2.6.0", "torchvision==0.21.0", "transformers==5.2.0", "accelerate==1.3.0"]
# What the packages above ask for in versions of their own, beside those named nvidia-*.
TIED = {"torch", "torchvision", "triton", "transformers", "accelerate", "huggingface-hub", "tokenizers", "sympy"}
TIED |= {"cuda-bindings", "cuda-pathfinder", "cuda-toolkit", "networkx", "setuptools"}
NOT_IN_A_COPY = shutil.ignore_patterns(
    "hf_lpsgd", "*.egg-info", "build", "dist", "runs", "site", "setup.py", "noxfile.py", "__pycache__", ".*"
)
# What is imported is what was installed, and the wheel brings the fused CPU step.
CHECK = """
import sys, hf_lpsgd
from hf_lpsgd.optim.kernels import cpu
assert hf_lpsgd.__file__.startswith(sys.prefix), hf_lpsgd.__file__
assert cpu.instructions() is not None, cpu.why_unavailable(None)
"""


# Whose command lines are run with the runner before them. LLaMA-Factory needs torchaudio, which not every torch has.
TOOLS = {
    "trl": ["trl==1.16.0", "peft"],
    "llamafactory": ["llamafactory==0.9.5", "torch==2.9.1", "torchvision==0.24.1", "torchaudio==2.9.1"],
}


def wheel(session: nox.Session) -> Path:
    """The wheel in dist/."""
    wheels = sorted((ROOT / "dist").glob("*.whl"))
    if len(wheels) != 1:
        session.error(f"dist/ must hold one wheel and has {len(wheels)}: empty it and run make dist")
    return wheels[0]


def run_tests(session: nox.Session, constraints: Path, *versions: str) -> None:
    """Install the wheel with its dev extra and `versions`, and run the suite, or what was asked for, against it."""
    session.install("--constraint", str(constraints), f"{wheel(session)}[dev]", *versions)
    copy = Path(session.create_tmp()).resolve() / "repository"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(ROOT, copy, ignore=NOT_IN_A_COPY)
    session.chdir(copy)
    session.run("python", "-c", CHECK)
    session.run("python", "-m", "hf_lpsgd", "--env")
    session.run("python", "-m", "pip", "list")
    session.run("python", "-m", "pytest", "-n", "2", "--dist", "loadfile", *session.posargs)


def without_pins_of_tied_packages(session: nox.Session) -> Path:
    """constraints.txt without the packages whose versions depend on those of torch and transformers."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    names = [re.split(r"[=<> ]", line)[0].lower() for line in lines]
    kept = [
        line for line, name in zip(lines, names, strict=True) if name not in TIED and not name.startswith("nvidia-")
    ]
    path = Path(session.create_tmp()).resolve() / "constraints.txt"
    path.write_text("\n".join(kept) + "\n")
    return path


@nox.session(python=PYTHONS)
def pinned(session: nox.Session) -> None:
    """The versions of constraints.txt."""
    run_tests(session, ROOT / "constraints.txt")


@nox.session(python=["3.10", "3.11"])
def oldest(session: nox.Session) -> None:
    """The oldest torch, transformers and Accelerate that pyproject.toml allows."""
    run_tests(session, without_pins_of_tied_packages(session), *OLDEST)


@nox.session(python=["3.11", "3.13"])
def newest(session: nox.Session) -> None:
    """The newest torch, torchvision, transformers and Accelerate that there are."""
    run_tests(session, without_pins_of_tied_packages(session), "torch", "torchvision", "transformers", "accelerate")


@nox.session(python=["3.11"])
def nightly(session: nox.Session) -> None:
    """The main branch of transformers."""
    main = "transformers @ git+https://github.com/huggingface/transformers"
    run_tests(session, without_pins_of_tied_packages(session), main)


@nox.session(python=["3.11"])
@nox.parametrize("tool", list(TOOLS), ids=list(TOOLS))
def tools(session: nox.Session, tool: str) -> None:
    """The command lines of a tool with the runner before them. Arguments after `--` are what pip installs besides."""
    session.install(str(wheel(session)), *TOOLS[tool], *session.posargs)
    folder = Path(session.create_tmp()).resolve() / "tool"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    session.chdir(folder)
    session.run("python", str(ROOT / "tests" / "real_tools.py"), tool)
    session.run("python", "-m", "pip", "list")
