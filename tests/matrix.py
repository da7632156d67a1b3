"""What tests are run over: every optimizer that has a record, and a class of its own."""

import pytest

from hf_lpsgd.optim import OPTIMIZERS

_CLASSES = {name: record.cls for name, record in OPTIMIZERS.items() if record.ordinary is None}
EACH_OPTIMIZER = pytest.mark.parametrize("cls", list(_CLASSES.values()), ids=list(_CLASSES))
