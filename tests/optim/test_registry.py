"""The records of the optimizers: what they tell the parser and the docs about an option is what the class does."""

import inspect
import re

import pytest
import torch

from hf_lpsgd.optim import OPTIMIZERS
from hf_lpsgd.optim.options import (
    FOREACH,
    GRAD_RMS,
    LR,
    MOMENTUM,
    MOMENTUM_DTYPE,
    P_MAX,
    ROUNDING,
    ROUNDING_SEED,
)

RECORDS = pytest.mark.parametrize("record", OPTIMIZERS.values(), ids=OPTIMIZERS)
OPTIONS = [(record, option) for record in OPTIMIZERS.values() for option in record.options]


@RECORDS
def test_a_record_lists_every_argument_of_the_constructor_with_its_default(record):
    parameters = list(inspect.signature(record.cls).parameters)
    assert sorted(option.name for option in record.options) == sorted(set(parameters) - {"params"})
    assert record.options[0] is LR
    assert P_MAX in record.options


@pytest.mark.parametrize(("record", "option"), OPTIONS, ids=lambda x: x.name)
def test_the_constructor_takes_the_range_that_the_record_tells_and_no_more(record, option):
    def make(value):
        beside = {"grad_rms": "auto", "rounding": "stochastic"} if option is MOMENTUM_DTYPE else {}  # for float8
        options = {**beside, option.name: value}
        return record.cls([torch.ones(1)], **options).param_groups[0][option.name]

    assert [make(value) for value in option.values] == list(option.values)
    wrong = ["atuo", "Stochastic", "", torch.float16, torch.ones(2), *({True, False, None} - {*option.values})]
    if option.low is None:
        wrong += [3, 0.5]
    else:
        inside = [option.low, 7 if option.below is None else option.below / 2]
        assert [make(value) for value in inside] == inside
        wrong += [option.low - 1, option.low / 2 - 1, float("nan"), float("inf"), "1"]
        wrong += [] if option.below is None else [option.below]
        wrong += [0.5, 1.0] if option.whole else []
    for value in wrong:
        with pytest.raises(ValueError, match=f"Invalid {option.name}: .* It must be {re.escape(option.allowed)}"):
            make(value)
    assert option.meaning


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        (GRAD_RMS, "none", None),
        (GRAD_RMS, "auto", "auto"),
        (GRAD_RMS, "1e-3", 1e-3),
        (FOREACH, "True", True),
        (ROUNDING_SEED, "7", 7),
        (MOMENTUM_DTYPE, "None", None),
        (ROUNDING, "stochastic", "stochastic"),
    ],
)
def test_the_text_of_a_command_line_is_read_as_the_value_that_it_stands_for(option, text, value):
    assert option.read(text) == value
    assert type(option.read(text)) is type(value)


@pytest.mark.parametrize(
    ("option", "text"), [(MOMENTUM, "none"), (GRAD_RMS, "false"), (FOREACH, "yes"), (ROUNDING_SEED, "1.5")]
)
def test_a_text_that_stands_for_no_value_of_an_option_is_refused_as_it_was_typed(option, text):
    with pytest.raises(ValueError, match=f"Invalid {option.name} in optim_args: '{text}'. It must be"):
        option.read(text, " in optim_args")
