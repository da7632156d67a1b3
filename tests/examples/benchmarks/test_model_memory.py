"""How much memory a model takes, from its config alone."""

import re
import sys

import model_memory
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig

from hf_lpsgd.optim import OPTIMIZERS

LLAMA = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}


@pytest.fixture
def llama(tmp_path):
    """The folder of a config with 1.2 billion parameters, of which none is made."""
    config = LlamaConfig(**LLAMA, vocab_size=32000, tie_word_embeddings=False, architectures=["LlamaForCausalLM"])
    config.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the script, and returns what it prints."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["model_memory.py", *map(str, arguments)])
        model_memory.main()
        return capsys.readouterr().out

    return run


def table(text):
    """The numbers of each line, by the words before them, for each dtype of the weights."""
    tables = {}
    for line in text.splitlines():
        if found := re.match(r"GB, with weights in (\w+)", line):
            rows = tables[found[1]] = {}
        elif found := re.match(r"(\w+ \S*) +((?:\d+\.\d+ *)+)$", line):
            rows[found[1].strip()] = [float(number) for number in found[2].split()]
    return tables


def test_it_is_printed_for_every_optimizer_and_adamw(llama, run):
    text = run(llama)
    count, largest = 1_204_881_408, 65_536_000
    assert f"LlamaForCausalLM: {count:,} parameters; the largest gradient has {largest:,} elements" in text
    assert "Activations come on top" in text
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        rows = table(text)[dtype]
        assert {name.split()[0] for name in rows} == {"adamw_torch", *OPTIMIZERS}
        weights, layerwise = size * count, size * largest
        expected = {
            "adamw_torch": (weights, weights, 2 * weights),
            "lpsgdm": (weights, weights, weights),
            f"lpsgdm {model_memory.FLOAT8}": (weights, weights, count),
            f"lpsgdm_layerwise {model_memory.FLOAT8}": (weights, layerwise, count),
            "lpsgdm_layerwise momentum_dtype=bfloat16": (weights, layerwise, 2 * count),
            "lpsgd_layerwise": (weights, layerwise, 0),
        }
        for name, kinds in expected.items():
            assert rows[name] == pytest.approx([number / 1e9 for number in (*kinds, sum(kinds))], abs=6e-4)


def test_it_is_what_the_optimizer_takes(tmp_path, run):
    config = GPT2Config(n_layer=2, n_embd=512, n_head=2, architectures=["GPT2LMHeadModel"])
    config.save_pretrained(tmp_path)
    optim_args = "momentum_dtype=float32,rounding=stochastic"
    text = run(tmp_path / "config.json", "--optim", "lpsgdm", "--optim_args", optim_args)
    model = GPT2LMHeadModel(config).to(torch.bfloat16)
    optimizer = OPTIMIZERS["lpsgdm"].cls(model.parameters(), grad_rms="auto", momentum_dtype="float32")
    model(input_ids=torch.zeros(1, 2, dtype=torch.int64), labels=torch.zeros(1, 2, dtype=torch.int64)).loss.backward()
    optimizer.step()
    state = sum(entry["momentum_buffer"].nbytes for entry in optimizer.state.values())
    rows = table(text)["bfloat16"]
    assert list(rows) == ["adamw_torch", f"lpsgdm {optim_args}"]
    assert rows[f"lpsgdm {optim_args}"][2] == pytest.approx(state / 1e9, abs=6e-4)
    tied = 2 * model.transformer.wte.weight.numel()  # its gradient has two parts
    assert f"the largest gradient has {tied:,} elements" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: model"),
        (["nowhere"], "there is no folder or file 'nowhere' here"),
        ([".", "--optim", "adam"], "invalid choice: 'adam'"),
        ([".", "--optim", "lpsgdm", "--optim_args", "foo=1"], "'foo=1' has no known key"),
        ([".", "--optim", "lpsgdm", "--optim_args", "momentum_dtype=float8"], "set rounding to stochastic"),
        ([".", "--optim_args", "p_max=6"], "--optim_args needs --optim"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments, said, llama, run, monkeypatch, capsys):
    monkeypatch.chdir(llama)
    with pytest.raises(SystemExit) as exit:
        run(*arguments)
    assert exit.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("model_memory.py: error: ")
    assert said in error


def test_a_folder_without_a_config_is_told_of(tmp_path, run, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path)
    assert "model_memory.py: error: " in capsys.readouterr().err
