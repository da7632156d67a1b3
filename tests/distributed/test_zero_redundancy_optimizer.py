"""torch.distributed.optim.ZeroRedundancyOptimizer, which keeps the optimizer of its shard as `.optim`."""

import pytest
import torch
from reference import annealed_p

STEPS = 6


@pytest.mark.parametrize("schedule", ["cosine", "lr"])
def test_p_of_a_sharded_optimizer_is_tied_and_its_steps_are_those_of_one_that_is_not_sharded(schedule, ranks):
    run = ranks.run("step_with_zero_redundancy_optimizer", schedule=schedule, steps=STEPS)
    facts = run.facts
    assert (facts["world_size"], facts["tied"]) == (2, "LPSGDM")
    assert 0 < facts["momentum_sharded"] < facts["momentum_alone"]
    if schedule == "cosine":
        assert facts["p_sharded"] == pytest.approx([annealed_p("cosine", 20.0, step, STEPS) for step in range(STEPS)])
    assert facts["p_sharded"] == facts["p_alone"]
    assert len(set(facts["p_alone"])) == STEPS
    alone = {name: weight for name, weight in run.weights.items() if name.startswith("alone.")}
    assert len(alone) == 4
    for name, weight in alone.items():
        assert torch.equal(weight, run.weights[name.replace("alone", "sharded")])
