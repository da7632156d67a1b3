"""Models that transformers does not have.

Importing this makes their names known to its Auto classes, and has `save_pretrained` put their code next to their
weights.
"""

from transformers import AutoConfig, AutoModelForImageClassification

from .cifar_resnet import CifarResNetConfig, CifarResNetForImageClassification
from .cifar_vgg import CifarVggConfig, CifarVggForImageClassification

for config, model in (
    (CifarResNetConfig, CifarResNetForImageClassification),
    (CifarVggConfig, CifarVggForImageClassification),
):
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModelForImageClassification.register(config, model, exist_ok=True)
    config.register_for_auto_class()
    model.register_for_auto_class("AutoModelForImageClassification")
