"""ResNet (He et al., 2016) for small images such as CIFAR's: a 3x3 stem of stride 1 without pooling.

With its defaults it is ResNet-18: 11,173,962 parameters for 10 classes, 11,220,132 for 100. This file needs nothing
beside it: `save_pretrained` puts a copy next to the weights, and `from_pretrained(..., trust_remote_code=True)` runs
that copy.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, relu
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention


class CifarResNetConfig(PretrainedConfig):
    """How deep and wide the network is.

    Args:
        num_channels: 1 for grey images, 3 for colour.
        depths: residual blocks of two convolutions in each stage; ResNet-18 has (2, 2, 2, 2), ResNet-34 (3, 4, 6, 3).
        hidden_sizes: channels of each stage; every stage after the first halves the sides of the image.
    """

    model_type = "cifar_resnet"

    def __init__(
        self,
        num_channels: int = 3,
        depths: list[int] | tuple[int, ...] = (2, 2, 2, 2),
        hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256, 512),
        **kwargs: Any,
    ) -> None:
        if not depths or len(depths) != len(hidden_sizes) or min(*depths, *hidden_sizes) < 1:
            raise ValueError(f"depths {depths} and hidden_sizes {hidden_sizes} must be as many, and all at least 1")
        self.num_channels = num_channels
        self.depths = list(depths)
        self.hidden_sizes = list(hidden_sizes)
        super().__init__(**kwargs)


class Block(nn.Module):
    """Two 3x3 convolutions and a way around them, projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(relu(self.norm1(self.conv1(x)))))
        return relu(y + self.shortcut(x))


class CifarResNetForImageClassification(PreTrainedModel):
    """The network with a linear classifier on the average over the image."""

    config_class = CifarResNetConfig
    main_input_name = "pixel_values"
    _no_split_modules = ["Block"]  # noqa: RUF012

    def __init__(self, config: CifarResNetConfig) -> None:
        super().__init__(config)
        width = config.hidden_sizes[0]
        self.stem = nn.Sequential(
            nn.Conv2d(config.num_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.stages = nn.ModuleList()
        for number, (depth, outputs) in enumerate(zip(config.depths, config.hidden_sizes, strict=True)):
            first = Block(width, outputs, stride=1 if number == 0 else 2)
            self.stages.append(nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(depth - 1))))
            width = outputs
        self.classifier = nn.Linear(width, len(config.id2label or {}))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.uniform_(module.bias, -bound, bound)

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, return_dict: bool | None = None
    ) -> ImageClassifierOutputWithNoAttention | tuple[torch.Tensor, ...]:
        # Convolutions are up to twice as fast in this layout, on CPUs and in half precision on GPUs.
        x = self.stem(pixel_values.contiguous(memory_format=torch.channels_last))
        for stage in self.stages:
            x = stage(x)
        logits = self.classifier(x.mean((2, 3)))
        # Any: older versions of transformers declare a FloatTensor, which no function is declared to return.
        loss: Any = None if labels is None else cross_entropy(logits, labels)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)
