"""What tests are run over: every optimizer that has a record."""

import pytest

from hf_lpsgd.optim import OPTIMIZERS

EACH_OPTIMIZER = pytest.mark.parametrize("cls", [record.cls for record in OPTIMIZERS.values()], ids=list(OPTIMIZERS))
