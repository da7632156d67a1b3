"""Where things lie in this repository."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FORK_SERVER = ROOT / "tests" / "fork_server.py"
QUICK_PYTHON = ROOT / "tests" / "quick_python"
EXAMPLES = ROOT / "examples"
IMAGE_CLASSIFICATION = EXAMPLES / "image_classification"
TRAINER_SCRIPT = IMAGE_CLASSIFICATION / "run_image_classification.py"
LOOP_SCRIPT = IMAGE_CLASSIFICATION / "run_image_classification_no_trainer.py"
ACCELERATE_CONFIGS = EXAMPLES / "accelerate_configs"
