"""Runs the command lines of a real tool with `python -m hf_lpsgd` before them: `real_tools.py trl|llamafactory`.

A tiny model, its tokenizer and its data are made in the present folder; nothing is loaded from a hub. Each command
must leave a `trainer_state.json` with p beside the learning rate, from p_max to 2. `nox --session tools` runs it.
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

STEPS = 6
WORDS = shlex.split("the a cat dog house tree runs eats sees big small red blue what where who")
TEMPLATE = (
    "{% for message in messages %}{{ '<s>' + message['role'] + '\\n' + message['content'] + '</s>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}"
)
TRL = shlex.split(f"""
--model_name_or_path model --dataset_name data --optim lpsgdm --learning_rate 1e-3 --max_steps {STEPS}
--logging_steps 1 --use_cpu --bf16 False --report_to none --per_device_train_batch_size 2
""")
LLAMA_FACTORY = {
    "model_name_or_path": "model",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "full",
    "dataset": "tiny",
    "dataset_dir": "data",
    "template": "default",
    "optim": "lpsgdm",
    "learning_rate": 1e-3,
    "max_steps": STEPS,
    "logging_steps": 1,
    "per_device_train_batch_size": 2,
    "report_to": "none",
    "use_cpu": True,
}
TWO = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2"}


def make_model() -> None:
    """A Llama of two layers, and a tokenizer of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=letters)
    tokenizer.train_from_iterator(WORDS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(fast), **sizes, **ids)).save_pretrained("model")
    fast.save_pretrained("model")


def make_data() -> None:
    """The same sentences in the form of each tool."""
    pairs = [(" ".join(WORDS[i % 9 : i % 9 + 6]), " ".join(WORDS[i % 7 : i % 7 + 8])) for i in range(64)]
    Path("data").mkdir()
    if TOOL == "trl":
        chats = [[{"role": "user", "content": one}, {"role": "assistant", "content": other}] for one, other in pairs]
        Path("data/train.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    else:
        alpaca = [{"instruction": question, "input": "", "output": answer} for question, answer in pairs]
        Path("data/alpaca.json").write_text(json.dumps(alpaca))
        Path("data/dataset_info.json").write_text(json.dumps({"tiny": {"file_name": "alpaca.json"}}))


def check(name: str, command: list[str], p_max: float = 20.0, **variables: str) -> None:
    """Run a command under the runner, and look at p in what it has saved."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": path}
    print("$ python -m hf_lpsgd", *command, flush=True)
    subprocess.run(
        [sys.executable, "-m", "hf_lpsgd", *command], env={**os.environ, **offline, **variables}, check=True
    )
    state = json.loads(Path(name, f"checkpoint-{STEPS}", "trainer_state.json").read_text())
    logs = [entry for entry in state["log_history"] if "learning_rate" in entry]
    p = [round(entry["p"], 2) for entry in logs]
    print(f"{name}: p is {p}", flush=True)
    if len(p) != STEPS or p != sorted(p, reverse=True) or (p[0], p[-1]) != (p_max, 2.0):
        sys.exit(f"{name}: p does not fall from {p_max:g} to 2")


def trl() -> None:
    check("full", ["trl", "sft", *TRL, "--output_dir", "full"])
    check("lora", ["trl", "sft", *TRL, "--output_dir", "lora", "--use_peft", "--optim_args", "p_max=10"], 10.0)


def llamafactory() -> None:
    for name, kind, variables in (("full", "full", {}), ("lora", "lora", {}), ("two", "full", TWO)):
        config = {**LLAMA_FACTORY, "finetuning_type": kind, "output_dir": name}
        Path(f"{name}.yaml").write_text(json.dumps(config))  # JSON is YAML
        check(name, ["llamafactory-cli", "train", f"{name}.yaml"], **variables)


if __name__ == "__main__":
    TOOL = sys.argv[1]
    make_model()
    make_data()
    {"trl": trl, "llamafactory": llamafactory}[TOOL]()
