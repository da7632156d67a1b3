"""The records of the optimizers: what they tell the parser and the docs about an option is what the class does."""

import inspect

import pytest
import torch

from hf_lpsgd.optim import OPTIMIZERS
from hf_lpsgd.optim.options import LR, LR_FACTOR, P_MAX, SATURATION, Choice, Count, Number, NumberOrWord

RECORDS = pytest.mark.parametrize("record", OPTIMIZERS.values(), ids=OPTIMIZERS)
OPTIONS = [(record, option) for record in OPTIMIZERS.values() for option in record.options]


@RECORDS
def test_a_record_lists_every_argument_of_the_constructor_with_its_default(record):
    parameters = list(inspect.signature(record.cls).parameters)
    assert sorted(option.name for option in record.options) == sorted(set(parameters) - {"params"})
    (group,) = record.cls([torch.ones(1)]).param_groups
    assert {name: group[name] for name in record.defaults} == record.defaults
    assert record.options[0] is LR
    assert P_MAX in record.options


@pytest.mark.parametrize(("record", "option"), OPTIONS, ids=lambda x: x.name)
def test_the_constructor_takes_the_range_that_the_record_tells_and_no_more(record, option):
    def make(value):
        size = {"grad_rms": 1.0} if option in (SATURATION, LR_FACTOR) else {}  # without which they have no effect
        return record.cls([torch.ones(1)], **size, **{option.name: value}).param_groups[0][option.name]

    if isinstance(option, NumberOrWord):
        words = [None, *([option.word] if option.word else [])]
        assert [make(value) for value in (*words, option.low, 2)] == [*words, option.low, 2.0]
        for value in (0, -1.0, option.low / 2, float("nan"), float("inf"), "atuo", True, torch.ones(2)):
            with pytest.raises(ValueError, match=f"Invalid {option.name}: .* It must be None.* or a finite num"):
                make(value)
        return
    if isinstance(option, Choice):
        allowed = [*option.names, *([None] if option.optional else [])]
        assert [make(value) for value in allowed] == allowed
        for value in ("Stochastic", "", 1, True, torch.float16, *([] if option.optional else [None])):
            with pytest.raises(ValueError, match=f"Invalid {option.name}: .* It must be one of {option.names[0]}, "):
                make(value)
        return
    if isinstance(option, Count):
        assert [make(value) for value in (0, 7, 2**40)] == [0, 7, 2**40]
        for value in (-1, 0.5, 1.0, "1", True, None):
            with pytest.raises(ValueError, match=f"Invalid {option.name}: .* It must be a whole number of at least 0"):
                make(value)
        return
    if not isinstance(option, Number):
        assert make(False) is False
        with pytest.raises(ValueError, match=f"Invalid {option.name}: 3. It must be {option.allowed}"):
            make(3)
        return
    assert make(option.low) == option.low
    beyond = [option.low - 1e-6, float("nan"), float("inf"), "1", True, *([option.below] if option.below else [])]
    for value in beyond:
        with pytest.raises(ValueError, match=f"Invalid {option.name}: .*It must be a .*number of at least"):
            make(value)
    assert option.meaning
