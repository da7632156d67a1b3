"""run_image_classification_no_trainer.py on two processes, by DDP and by DeepSpeed's ZeRO stages."""

import pytest
from paths import LOOP_SCRIPT as SCRIPT
from reference import annealed_p

STEPS = 6
# A norm that the gradients exceed, and not the 1.0 that DeepSpeed clips at by itself.
ARGUMENTS = f"--max_train_steps {STEPS} --num_warmup_steps 0 --batch_size 16 --max_grad_norm 0.1".split()


@pytest.mark.parametrize(
    ("config", "stage"), [("zero2", 2), pytest.param("zero3", 3, marks=pytest.mark.exhaustive), ("zero3_offload", 3)]
)
def test_the_accelerate_loop_with_zero_gives_what_it_gives_with_ddp(config, stage, ranks):
    spec = {"script": str(SCRIPT), "arguments": ARGUMENTS}
    ddp = ranks.run("run_loop", **spec)
    zero = ranks.run("run_loop", env=ranks.launch_config(f"deepspeed_{config}")["environment"], **spec)
    assert (ddp.facts["engine"], ddp.facts["world_size"]) == ("DistributedDataParallel", 2)
    assert (zero.facts["engine"], zero.facts["world_size"], zero.facts["zero_stage"]) == ("DeepSpeedEngine", 2, stage)
    expected = [annealed_p("cosine", 20.0, step, STEPS) for step in range(STEPS)]
    assert ddp.logged("p") == zero.logged("p") == pytest.approx(expected)
    assert ddp.logged("learning_rate") == zero.logged("learning_rate")
    saved = [ranks.run("weights_from_pretrained", 1, model=str(run.folder / "out")) for run in (ddp, zero)]
    assert not any(any(run.facts.values()) for run in saved)
    assert saved[0].difference(saved[1]) <= 1e-4
