"""What the Trainer integration makes of the sections of a DeepSpeed config of the user's own."""

import pytest
import torch
from reference import annealed_p

from hf_lpsgd import tie_p_schedule

STEPS, WARMUP = 8, 2
CONFIG = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_optimization": {"stage": 2},
}
OFFLOAD = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
SCHEDULERS = {
    "WarmupLR": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"},
    "WarmupDecayLR": {"warmup_max_lr": "auto", "warmup_num_steps": "auto", "total_num_steps": "auto"},
    "WarmupCosineLR": {"warmup_num_steps": WARMUP, "total_num_steps": "auto"},
    "OneCycle": {"cycle_min_lr": 1e-4, "cycle_max_lr": 3e-3, "cycle_first_step_size": 4, "cycle_momentum": False},
    "LRRangeTest": {"lr_range_test_min_lr": 1e-4, "lr_range_test_step_size": 2},
}
EXPECTED_P = [20.0] * WARMUP + [annealed_p("cosine", 20.0, step, STEPS - WARMUP) for step in range(STEPS - WARMUP)]


def last_line(log):
    return [line for line in log.splitlines() if line.startswith("ValueError")][-1]


def test_an_optimizer_section_is_refused_with_what_to_do_instead(ranks):
    config = {**CONFIG, "optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}
    run = ranks.train("deepspeed_zero2", deepspeed=config, exit_codes=[1, 1])
    for log in run.logs:
        assert last_line(log) == (
            "ValueError: The DeepSpeed config has an `optimizer` section (AdamW), which would train instead of "
            "--optim lpsgdm. Drop the section."
        )


def test_an_optimizer_section_is_none_of_our_business_with_another_optimizer(ranks):
    config = {**CONFIG, "optimizer": {"type": "SGD", "params": {"lr": "auto"}}}
    arguments = {"optim": "sgd", "optim_args": None}
    run = ranks.run(
        "train",
        env={"ACCELERATE_USE_DEEPSPEED": "true"},
        arguments={**arguments, "deepspeed": {**config, "zero_allow_untested_optimizer": True}},
    )
    assert run.facts["optimizer"] == "SGD"
    assert not any("p" in entry for entry in run.facts["history"])


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_p_is_tied_to_every_scheduler_of_deepspeeds_own(scheduler, ranks):
    config = {**CONFIG, "scheduler": {"type": scheduler, "params": SCHEDULERS[scheduler]}}
    run = ranks.train("deepspeed_zero2", deepspeed=config, arguments={"warmup_steps": WARMUP})
    assert run.facts["scheduler"] == scheduler
    assert run.logged("p") == pytest.approx(EXPECTED_P)


@pytest.mark.parametrize("scheduler", ["WarmupDecayLR", "WarmupCosineLR"])
def test_p_follows_the_learning_rate_of_deepspeeds_schedulers(scheduler, ranks):
    config = {**CONFIG, "scheduler": {"type": scheduler, "params": SCHEDULERS[scheduler]}}
    arguments = {"warmup_steps": WARMUP, "optim_args": "p_max=20,p_schedule=lr"}
    run = ranks.train("deepspeed_zero2", deepspeed=config, arguments=arguments)
    # DeepSpeed steps its scheduler with the optimizer, so the learning rate in the log is that of the step after.
    lrs = [0.0, *run.logged("learning_rate")[:-1]]
    assert max(lrs) == pytest.approx(3e-3)
    assert run.logged("p") == pytest.approx([2 + 18 * lr / 3e-3 for lr in lrs])


def test_a_resumed_run_with_a_scheduler_of_deepspeeds_own_goes_on_as_the_uninterrupted_one(ranks):
    config = {**CONFIG, "scheduler": {"type": "WarmupDecayLR", "params": SCHEDULERS["WarmupDecayLR"]}}
    arguments = {"warmup_steps": WARMUP, "save_strategy": "steps", "save_steps": 5}
    straight = ranks.train("deepspeed_zero2", deepspeed=config, arguments=arguments)
    checkpoint = straight.folder / "out" / "checkpoint-5"
    resumed = ranks.train("deepspeed_zero2", deepspeed=config, arguments=arguments, resume=str(checkpoint))
    assert resumed.logged("p") == straight.logged("p") == pytest.approx(EXPECTED_P)
    assert resumed.is_bit_for_bit(straight)


def test_lpsgdm_itself_trains_where_the_config_offloads_the_optimizer(ranks):
    run = ranks.train("deepspeed_zero2_offload", deepspeed={**CONFIG, **OFFLOAD})
    assert run.difference(ranks.train("deepspeed_zero2")) <= 1e-6


def test_an_offload_that_forces_deepspeeds_own_optimizer_is_refused(ranks):
    config = {**CONFIG, **OFFLOAD, "zero_force_ds_cpu_optimizer": True}
    run = ranks.train("deepspeed_zero2", deepspeed=config, exit_codes=[1, 1])
    assert "`zero_force_ds_cpu_optimizer: true`. Then DeepSpeed's CPU Adam would train" in last_line(run.logs[0])


def test_a_loop_of_ones_own_is_told_how_to_keep_its_optimizer_where_the_config_offloads():
    class DeepSpeedCPUAdam(torch.optim.SGD):
        pass

    optimizer = DeepSpeedCPUAdam([torch.zeros(1)], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
    with pytest.raises(ValueError, match=r"is DeepSpeedCPUAdam: it has no p\..* zero_force_ds_cpu_optimizer: false"):
        tie_p_schedule(optimizer, scheduler, num_training_steps=8)


def test_a_config_that_clips_otherwise_than_max_grad_norm_is_told(ranks):
    config = {key: value for key, value in CONFIG.items() if key != "gradient_clipping"}
    run = ranks.train("deepspeed_zero2", deepspeed=config, arguments={"max_grad_norm": 0.5})
    assert run.facts["clipping"] != 0.5
    assert "--max_grad_norm 0.5 has no effect" in run.logs[0]


def test_auto_clips_at_max_grad_norm(ranks):
    run = ranks.train("deepspeed_zero2", deepspeed=CONFIG, arguments={"max_grad_norm": 0.5})
    assert run.facts["clipping"] == 0.5
    assert "has no effect" not in run.logs[0]
