"""The steps of on_gpu.py, each in a process of its own. They call the scripts and functions that there are."""

import gc
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from on_gpu import HERE, ROOT, LeftOut, Line, Results, error_in, one_line

EXAMPLES = HERE.parent
PACKAGES = ("triton", "transformers", "accelerate", "aenum", "numpy", "torch-optimi", "lion-pytorch", "datasets")
DTYPES = ("float32", "bfloat16")
COLUMNS = ("parameters", "gradients", "momentum")
# Of these. In the dry form triton's interpreter runs, which is slow, and cuts bfloat16 off.
CHECKED: dict[str, list[tuple[str | None, ...]]] = {
    "cuda": [
        ("float32", "float32", "float32"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float16", "float16", "float16"),
        ("bfloat16", "bfloat16", "float32"),
        ("float32", "float32", "bfloat16"),
        ("float32", "bfloat16", "float32"),
        ("float32", "float32", None),
        ("bfloat16", "bfloat16", None),
        # Where they are known: bytes that hold a momentum in float8.
        ("float32", "float32", "uint8"),
        ("bfloat16", "bfloat16", "uint8"),
    ],
    "cpu": [("float32", "float32", None)],
}
TESTS = {
    "cuda": ["tests/optim/test_cuda.py"],
    "cpu": [
        "tests/optim/test_cuda.py",
        "tests/optim/test_implementations.py",
        "-k",
        "test_cuda or (triton and numbers)",
    ],
}
REPEATS = {"cuda": 12, "cpu": 2}
# Of all that step_time.py times, these are shown first.
SHOWN = ("LPSGDM, default", "LPSGD, default", "SGD, momentum, fused", "AdamW, fused", "copy")
LLAMA_1B: dict[str, Any] = {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192}
LLAMA_1B |= {"num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True}
TINY: dict[str, Any] = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
LLAMA = {"cuda": LLAMA_1B, "cpu": LLAMA_1B | TINY}
TRAINED = 48
"""Steps of a training; grad_rms is measured in the first 20, and so the checkpoint at half-way has it."""
# Inductor would need a compiler for C++ on a CPU.
TRAINED_WITH: dict[str, dict[str, list[str]]] = {
    "cuda": {"as it is": [], "compiled": ["--torch_compile"]},
    "cpu": {"compiled": ["--use_cpu", "--torch_compile", "--torch_compile_backend", "eager"]},
}
STUDY_TASKS: dict[str, dict[str, str | None]] = {
    "cuda": {"shakespeare": "texts", "cifar_resnet": "cifar10", "text": None},
    "cpu": {"cifar_resnet": "cifar10", "digits_vit": None},
}
"""Tasks of the study runner, with the flag of on_gpu.py that names their data."""
WHOLE_STEPS = {"cuda": 300, "cpu": 12}


@dataclass(frozen=True)
class Given:
    """What on_gpu.py tells a step."""

    device: str
    cifar10: str | None
    texts: str | None
    results: str
    earlier: int
    folder: str
    commit: str
    command: str


def device(given: Given, results: Results) -> None:
    """What machine this is, and with which versions; the first device that torch can compute on."""
    import torch
    from provenance import provenance

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    chosen = given.device or ("cuda" if count else "cpu")
    why_not = None if count else f"torch {torch.__version__} sees no GPU"
    try:
        torch.ones(8, device=chosen).sum().item()
    except Exception as error:  # a driver that is too old, a GPU that torch was not built for
        count, why_not = 0, why_not or one_line(f"{type(error).__name__}: {error}")
    facts = provenance("on_gpu.py", PACKAGES, torch.device("cuda" if count and chosen == "cuda" else "cpu"))
    properties = [torch.cuda.get_device_properties(index) for index in range(count)]
    results.write(
        name="machine",
        machine=facts.pop("device"),
        **{**facts, "command": given.command, "commit": facts["commit"] or given.commit or "unknown"},
        device=chosen,
        gpus=count,
        no_gpu=why_not,
        cuda=torch.version.cuda,
        date=time.strftime("%Y-%m-%d"),
        rows=[
            {"GPU": of.name, "compute capability": f"{of.major}.{of.minor}", "GB": round(of.total_memory / 1e9, 1)}
            for of in properties
        ],
    )


def self_check(given: Given, results: Results) -> None:
    """The kernel on each kind of tensors; in the dry form interpreted on the CPU."""
    import torch

    from hf_lpsgd.environment import describe_environment
    from hf_lpsgd.optim.kernels import cuda
    from hf_lpsgd.optim.kernels.choice import implementation_for, why_not_fused
    from hf_lpsgd.optim.kernels.self_check import why_wrong

    where = torch.device(given.device)

    def used() -> Line:
        name, reason = implementation_for(where), why_not_fused(where)
        if (given.device, name) == ("cuda", "foreach"):
            raise RuntimeError(f"the default is foreach, since {reason}")
        return {"rows": [{"tensors": "any", "result": f"the default is {name}"}]}

    def check(kind: str, *names: str | None) -> Line:
        dtypes = tuple(None if name is None else getattr(torch, name) for name in names)
        if not cuda.supports(where, *dtypes):
            raise LeftOut("the kernel does not support them on this GPU")
        begun = time.perf_counter()
        wrong = why_wrong(cuda.step, where, dtypes)
        assert wrong is None, wrong
        seconds = f"{time.perf_counter() - begun:.1f}"
        return {"rows": [{"tensors": kind, "result": "agrees with torch", "seconds": seconds}]}

    results.add("default", used)
    for names in CHECKED[given.device]:
        kind = ", ".join(f"{name} {of}" for name, of in zip(names, COLUMNS, strict=True) if name)
        results.add(kind, partial(check, kind, *names))
    results.add("environment", lambda: {"text": f"```\n{describe_environment()}\n```"})


class Recorder:
    """A plugin for pytest: writes the result of each test at once."""

    def __init__(self, results: Results) -> None:
        self.results = results

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if item.nodeid not in self.results.had]

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.results.finish(report.nodeid, {"failed": _said_in(report)})

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.results.write(name=nodeid, began=True)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.results.finish(report.nodeid, {"failed": _said_in(report)})
        elif report.skipped:
            self.results.finish(report.nodeid, {"left_out": one_line(report.longrepr[-1])})
        elif report.when == "call":
            row = {"test": report.nodeid.split("/")[-1], "result": "passed", "seconds": f"{report.duration:.1f}"}
            self.results.finish(report.nodeid, {"rows": [row]})


def _said_in(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return one_line(report.longreprtext[-400:] if crash is None else crash.message)


def tests(given: Given, results: Results) -> None:
    import pytest

    flags = ["-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider", "-m", "not exhaustive"]
    pytest.main([*flags, *TESTS[given.device]], plugins=[Recorder(results)])


def step_times(given: Given, results: Results) -> None:
    """The step of each optimizer on each set of shapes: see step_time.py."""
    import step_time
    import torch
    from parameter_shapes import SHAPES

    where = torch.device(given.device)
    every, lacking = step_time.contenders, dict[str, str]()

    def working(device: torch.device, dtype: torch.dtype) -> list[step_time.Contender]:
        """Those of them that can make a step here, so that one that cannot does not take the others with it."""
        found = []
        for contender in every(device, dtype):
            try:
                contender.make(step_time.make_parameters([(8,)], device, dtype)).step()
                found.append(contender)
            except Exception as error:
                lacking[contender.name] = one_line(f"{type(error).__name__}: {error}")
        return found

    step_time.contenders = working

    def measure(name: str, dtype: str) -> Line:
        shapes = SHAPES[name]()
        if given.device == "cpu":
            shapes = [tuple(min(side, 8) for side in shape) for shape in shapes[:3]]
        needed, free = step_time.needed_bytes(shapes, where, getattr(torch, dtype)), step_time.free_bytes(where)
        if needed > free:
            raise LeftOut(f"it takes about {needed / 1e9:.0f} GB, and {free / 1e9:.0f} GB are free")
        lacking.clear()
        result = step_time.measure(shapes, where, getattr(torch, dtype), REPEATS[given.device])
        head, *body = step_time.rows(result)
        tables = [
            step_time.table({f"{name}, {dtype}": result}),
            *(f"- {name}: {why}" for name, why in lacking.items()),
        ]
        rows = [
            {"tensors": f"{name}, {dtype}", **dict(zip(head, row, strict=True))} for row in body if row[0] in SHOWN
        ]
        return {"rows": rows, "text": "\n".join(tables), "data": result}

    for name, dtype in itertools.product(SHAPES, DTYPES):
        results.add(f"{name}, {dtype}", partial(measure, name, dtype))
        gc.collect()
        torch.cuda.empty_cache()


def trainer(given: Given, results: Results) -> None:
    """The Trainer in bfloat16 with gradient accumulation, and the same compiled."""
    for name, flags in TRAINED_WITH[given.device].items():
        flags = ["--bf16", "--gradient_accumulation_steps", "2", *flags]
        results.add(name, partial(train_and_resume, given, [], flags, Path(given.folder, name)))


def fsdp2(given: Given, results: Results) -> None:
    """FSDP2 on two GPUs. On a CPU there is none, and its launch config starts one process."""
    config = str(EXAMPLES / "accelerate_configs" / "fsdp2.yaml")
    processes = {"cuda": "2", "cpu": "1"}[given.device]
    launch = ["-m", "accelerate.commands.launch", "--config_file", config, "--num_processes", processes]
    flags = {"cuda": ["--bf16"], "cpu": ["--bf16", "--use_cpu"]}[given.device]
    results.add("FSDP2", partial(train_and_resume, given, launch, flags, Path(given.folder)))


def run(command: list[Any], given: Given) -> None:
    """Run a command that prints into the log, and fail with the error that it printed."""
    status = subprocess.run(list(map(str, command))).returncode
    if status:
        log = (Path(given.results).parent / "log.txt").read_text(errors="replace")
        raise RuntimeError(f"exit status {status}: {error_in(log[-20_000:])}")


def train_and_resume(given: Given, launcher: list[str], flags: list[str], folder: Path) -> Line:
    """Train minimal_trainer.py to the end, and once more from its checkpoint at half-way; both must end alike."""
    half = TRAINED // 2
    fixed = ["--optim", "lpsgdm", "--max_steps", TRAINED, "--save_strategy", "steps", "--save_steps", half]
    fixed += ["--logging_steps", 8, "--disable_tqdm", "true", "--report_to", "none", *flags]
    logs, seconds = [], []
    for name, more in (("whole", []), ("resumed", ["--resume_from_checkpoint", folder / f"whole/checkpoint-{half}"])):
        command = [sys.executable, *launcher, EXAMPLES / "minimal_trainer.py", *fixed, *more]
        begun = time.perf_counter()
        run([*command, "--output_dir", folder / name], given)
        seconds.append(f"{time.perf_counter() - begun:.0f}")
        state = json.loads((folder / name / f"checkpoint-{TRAINED}" / "trainer_state.json").read_text())
        logs.append([entry for entry in state["log_history"] if "loss" in entry])
    whole, resumed = ([entry for entry in log if entry["step"] > half] for log in logs)
    difference = max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(whole, resumed, strict=True))
    differing = [
        key for a, b in zip(whole, resumed, strict=True) for key in ("p", "learning_rate") if a[key] != b[key]
    ]
    first, last = logs[0][0]["loss"], logs[0][-1]["loss"]
    assert not differing, f"{differing[0]} of the resumed run differs: {whole} and {resumed}"
    # Of sums in another order the loss differs by some thousandths.
    assert difference < 0.05, f"the loss of the resumed run differs by {difference:.1%}: {whole} and {resumed}"
    assert last < 0.9 * first, f"the loss was {first} first, and {last} last"
    row = {"flags": " ".join(flags), "first loss": f"{first:.3f}", "last loss": f"{last:.3f}"}
    row |= {"largest difference of the resumed run's": f"{difference:.1e}", "seconds of both": " and ".join(seconds)}
    return {"rows": [row], "data": {"whole": logs[0], "resumed": logs[1]}}


def memory(given: Given, results: Results) -> None:
    """A Llama of 1.24 billion parameters with each optimizer: see peak_memory.py."""
    import peak_memory
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    where, config = torch.device(given.device), LLAMA[given.device]

    def llama() -> tuple[Any, dict[str, torch.Tensor]]:
        with where:  # where the initial weights are made in a second, and not in ten
            tokens = torch.randint(0, config["vocab_size"], (1, 128))
            return LlamaForCausalLM(LlamaConfig(**config)), {"input_ids": tokens, "labels": tokens}

    peak_memory.MODELS["llama_1b"] = llama

    def measure(dtype: str, name: str) -> Line:
        found = peak_memory.measure("llama_1b", name, getattr(torch, dtype), where)
        head, _, row = [line for line in peak_memory.table({"": {name: found}}) if line.startswith("|")]
        return {"rows": [{"weights": dtype, **dict(zip(_cells(head), _cells(row), strict=True))}], "data": found}

    for dtype, name in itertools.product(reversed(DTYPES), peak_memory.OPTIMIZERS):
        results.add(f"{name}, {dtype}", partial(measure, dtype, name))
        gc.collect()
        torch.cuda.empty_cache()


def _cells(row: str) -> Iterator[str]:
    return (cell.strip() for cell in row.strip().strip("|").split("|"))


def study(given: Given, results: Results) -> None:
    """The study runner on the tasks whose data there are. It writes each cell into the folder of the results too."""
    folder = Path(given.results).parent / "study"
    for task, data in STUDY_TASKS[given.device].items():
        results.add(task, partial(_train_task, task, data, given, folder))


def _train_task(task: str, data: str | None, given: Given, folder: Path) -> Line:
    where = getattr(given, data) if data else None
    if data and where is None:
        raise LeftOut(f"it needs its data: --{data}")
    if data == "cifar10" and find_spec("datasets") is None:
        raise LeftOut("missing: datasets; pip install datasets")
    flags = ["--only", task, "--device", given.device, "--output_dir", folder, *([f"--{data}", where] if data else [])]
    command = [sys.executable, HERE / "run_study.py", HERE / "studies" / "on_gpu.yaml", *flags]
    run(command, given)
    cells = [json.loads(line) for line in (folder / "cells.jsonl").read_text().splitlines()]
    columns = ("task", "optimizer", "rate", "accuracy", "eval_loss", "loss", "seconds")
    return {"rows": [{key: cell[key] for key in columns if key in cell} for cell in cells if cell.get("task") == task]}


def whole_steps(given: Given, results: Results) -> None:
    """Steps of the Trainer with lpsgdm, beside sgd and AdamW: see trainer_step.py."""
    import torch
    import trainer_step

    def measure(model: str) -> Line:
        result = trainer_step.compare(model, WHOLE_STEPS[given.device], torch.device(given.device))
        times = {f"{name}, ms": f"{seconds * 1e3:.2f}" for name, seconds in result["median_seconds"].items()}
        return {
            "rows": [{"model": model, **times, "lpsgdm / sgd": f"{result['lpsgdm_over_sgd']:.3f}"}],
            "data": result,
        }

    models = list(trainer_step.MODELS)
    for model in models if given.device == "cuda" else models[:1]:
        results.add(model, partial(measure, model))


STEPS = {step.__name__: step for step in (device, self_check, tests, step_times, trainer, memory, study, fsdp2)}
STEPS["whole_steps"] = whole_steps


def main() -> None:
    name, given = sys.argv[1], Given(**json.loads(sys.argv[2]))
    os.environ["TRITON_INTERPRET"] = str(int(given.device == "cpu"))
    STEPS[name](given, Results(Path(given.results), name, given.earlier))


if __name__ == "__main__":
    main()
