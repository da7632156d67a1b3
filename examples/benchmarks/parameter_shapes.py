"""The shapes of the parameters of known models, without the models."""

Shape = tuple[int, ...]


def resnet50() -> list[Shape]:
    """ResNet-50 with 1000 classes: 25.6 million parameters in 161 tensors."""

    def convolution(outputs: int, inputs: int, size: int) -> list[Shape]:
        return [(outputs, inputs, size, size), (outputs,), (outputs,)]

    shapes = convolution(64, 3, 7)
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += convolution(width, inputs, 1) + convolution(width, width, 3) + convolution(4 * width, width, 1)
            if block == 0:
                shapes += convolution(4 * width, inputs, 1)
            inputs = 4 * width
    return [*shapes, (1000, inputs), (1000,)]


def vit_b_16() -> list[Shape]:
    """ViT-B/16 for images of 224 pixels, 1000 classes: 86.6 million parameters in 152 tensors."""
    width, hidden = 768, 3072
    layer: list[Shape] = [(width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,)]
    layer += [(width,), (width,), (hidden, width), (hidden,), (width, hidden), (width,)]
    embedding: list[Shape] = [(1, 1, width), (width, 3, 16, 16), (width,), (1, 197, width)]
    return [*embedding, *(layer * 12), (width,), (width,), (1000, width), (1000,)]


def llm_1b() -> list[Shape]:
    """A language model as Llama 3.2 1B: 1.24 billion parameters in 146 tensors."""
    width, key_value, hidden, layers, vocabulary = 2048, 512, 8192, 16, 128256
    layer: list[Shape] = [(width, width), (key_value, width), (key_value, width), (width, width)]
    layer += [(hidden, width), (hidden, width), (width, hidden), (width,), (width,)]
    return [(vocabulary, width), *(layer * layers), (width,)]


def many_small() -> list[Shape]:
    """60 tensors of 16 elements."""
    return [(16,)] * 60


def lora() -> list[Shape]:
    """The matrices of LoRA with rank 8, on 7 layers of each of 16 blocks of width 1,024: 224 tensors."""
    return [(8, 1024), (1024, 8)] * 112


SHAPES = {"resnet50": resnet50, "vit_b_16": vit_b_16, "llm_1b": llm_1b, "many_small": many_small, "lora": lora}
