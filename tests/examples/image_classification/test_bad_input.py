"""What the script answers to wrong flags, wrong values and data that are not there."""

import pytest
from paths import TRAINER_SCRIPT as SCRIPT

OLD = ["--model_name_or_path", "x"]
BAD_INPUT = {
    "neither --do_train nor --do_eval": ([], ["nothing to do", "--do_train", "--do_eval"]),
    "evaluation without a model": (["--do_eval"], ["--model_name_or_path"]),
    "unknown argument": (["--do_train", "--max_samples", "3"], ["unknown arguments: --max_samples 3"]),
    "unknown optimizer": (["--do_train", "--optim", "lpsgdmm"], ["lpsgdmm", "lpsgdm'"]),
    "unknown optim_args key": (["--do_train", "--optim", "lpsgdm", "--optim_args", "pmax=3"], ["pmax", "p_max"]),
    "no such folder": (["--do_train", "--train_dir", "/no/such/folder"], ["--train_dir", "/no/such/folder"]),
    "no such local dataset": (["--do_train", "--dataset_name", "./nowhere"], ["--dataset_name", "./nowhere"]),
    "no such dataset on the Hub": (["--do_train", "--dataset_name", "nobody/nothing"], ["nobody/nothing"]),
    "dataset and folder": (["--do_train", "--dataset_name", "a", "--train_dir", "."], ["exclude each other"]),
    "no such image column": (["--do_train", "--image_column_name", "pic"], ["'pic'", "image (Image)"]),
    "column without images": (["--do_train", "--image_column_name", "label"], ["holds no images", "image (Image)"]),
    "no such label column": (["--do_train", "--label_column_name", "y"], ["'y'", "label (ClassLabel)"]),
    "no such split": (["--do_train", "--eval_split_name", "dev"], ["'dev'", "train, validation"]),
    "nothing to resume": (["--do_train", "--resume_from_checkpoint", "True"], ["holds no complete checkpoint"]),
    "no such checkpoint": (["--do_train", "--resume_from_checkpoint", "x"], ["'x'", "trainer_state.json"]),
    "no images": (["--do_train", "--max_train_samples", "0"], ["--max_train_samples", "at least 1"]),
    "unknown augmentation": (["--do_train", "--augmentation", "blur"], ["'blur'", "shift_flip"]),
    "unknown architecture": (["--do_train", "--model_type", "vitt"], ["'vitt'", "resnet"]),
    "unknown config key": (["--do_train", "--config_overrides", "width=3"], ["width", "hidden_size"]),
    "side that is no number": (["--do_train", "--config_overrides", "image_size=big"], ["image_size=big", "whole"]),
    "no images in a batch": (
        ["--do_train", "--per_device_train_batch_size", "0"],
        ["_train_batch_size", "at least 1"],
    ),
    "no batches": (["--do_train", "--gradient_accumulation_steps", "0"], ["accumulation_steps", "at least 1, not 0"]),
    "seed below 0": (["--do_train", "--seed", "-1"], ["--seed", "at least 0, not -1"]),
    "schedule without its length": (
        ["--do_train", "--lr_scheduler_type", "warmup_stable_decay"],
        ["--lr_scheduler_type warmup_stable_decay", "--lr_scheduler_kwargs", "num_decay_steps"],
    ),
    "schedule without its end": (["--do_train", "--lr_scheduler_type", "cosine_with_min_lr"], ["min_lr"]),
    "unknown option of a schedule": (
        ["--do_train", "--lr_scheduler_kwargs", '{"num_cycle": 1}'],
        ["--lr_scheduler_type cosine", "num_cycle"],
    ),
    "impossible config": (["--do_train", "--config_overrides", "hidden_act=swoosh"], ["swoosh"]),
    "size of a model": (["--do_train", *OLD, "--image_size", "8"], ["--image_size 8", "--model_name_or_path"]),
    "type of a model": (["--do_train", *OLD, "--model_type", "vit"], ["--model_type vit", "--model_name_or_path"]),
    "config of a model": (["--do_train", *OLD, "--config_overrides", "hidden_size=8"], ["--config_overrides hidden"]),
    "settings that contradict": (["--do_train", "--load_best_model_at_end", "--eval_strategy", "no"], ["best"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_answered_in_one_line(forks, tmp_path, case):
    arguments, words = BAD_INPUT[case]
    run = forks.start(SCRIPT, *arguments, "--use_cpu", "--output_dir", tmp_path / "run")
    run.wait()
    answers = [line for line in run.output.splitlines() if "error:" in line]
    assert run.status == 2, run.output
    assert len(answers) == 1, run.output
    assert "Traceback" not in run.output
    assert answers[0].startswith("run_image_classification.py: error: ")
    assert all(word in answers[0] for word in words), answers[0]
    assert not (tmp_path / "run").exists()
