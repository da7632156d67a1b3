"""Small models of the study: a transformer for images and text, a residual network and a VGG with batch norm."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["VGG", "ResNet", "Transformer"]


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        query, key, value = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """A pre-norm transformer.

    Args:
        inputs: size of a token that is a patch of an image, or number of tokens of a vocabulary.
        tokens: length of a sequence.
        classes: number of classes.
        std: standard deviation of the initial weights; None for torch's default initialization.
        is_text: tokens are numbers of a vocabulary, and each predicts its successor.
    """

    def __init__(
        self,
        inputs: int,
        tokens: int,
        classes: int,
        *,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        std: float | None = 0.02,
        is_text: bool = False,
    ) -> None:
        super().__init__()
        self.is_text = is_text
        self.embed = nn.Embedding(inputs, width) if is_text else nn.Linear(inputs, width)
        self.position = nn.Parameter(torch.randn(1, tokens, width) * (std or 0.02))
        self.blocks = nn.ModuleList(_Block(width, heads, is_text) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)
        if std is not None:
            for module in self.modules():
                if isinstance(module, nn.Linear | nn.Embedding):
                    nn.init.trunc_normal_(module.weight, std=std)
                if isinstance(module, nn.Linear):
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.position
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x if self.is_text else x.mean(1))


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.short = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.short(x))


class ResNet(nn.Module):
    """A residual network with batch norm for small images, of three stages."""

    def __init__(self, classes: int, width: int = 16, channels: int = 3, stem_stride: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, stem_stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.stages = nn.Sequential(
            _Residual(width, width, 1), _Residual(width, 2 * width, 2), _Residual(2 * width, 4 * width, 2)
        )
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


class VGG(nn.Module):
    """VGG-11 with batch norm for images of 32 x 32: eight convolutions; `width` is 64 in the original."""

    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for multiple in (1, 0, 2, 0, 4, 4, 0, 8, 8, 0, 8, 8, 0):
            if multiple == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [
                nn.Conv2d(channels, multiple * width, 3, padding=1, bias=False),
                nn.BatchNorm2d(multiple * width),
                nn.ReLU(),
            ]
            channels = multiple * width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))
