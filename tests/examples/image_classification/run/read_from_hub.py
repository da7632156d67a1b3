"""Reads a model of the Hub as its users do, and prints as JSON what came of it."""

import hashlib
import json
import os
import sys
from pathlib import Path

from huggingface_hub import ModelCard, constants
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

repo, image, *trust = sys.argv[1:]
code = {"trust_remote_code": trust == ["trust_remote_code"]}
fresh = not Path(constants.HF_HUB_CACHE).exists()
model = AutoModelForImageClassification.from_pretrained(repo, **code)
processor = AutoImageProcessor.from_pretrained(repo)
cached = Path(constants.HF_HUB_CACHE, f"models--{repo.replace('/', '--')}")
weights = next(cached.glob("snapshots/*/model.safetensors")).read_bytes()
print(
    json.dumps(
        {
            "fresh": fresh,
            "offline": os.environ.get("HF_HUB_OFFLINE"),
            "sha256": hashlib.sha256(weights).hexdigest(),
            "size": dict(processor.crop_size),
            "tags": ModelCard.load(repo).data.tags,
            "answers": pipeline("image-classification", model=repo, top_k=10, **code)(image),
            "module": type(model).__module__,
            "labels": list(model.config.label2id),
        }
    )
)
