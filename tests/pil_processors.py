"""The image processors of transformers that need no torchvision, which once had the plain names."""

import transformers

BitImageProcessorPil = getattr(transformers, "BitImageProcessorPil", None) or transformers.BitImageProcessor
ViTImageProcessorPil = getattr(transformers, "ViTImageProcessorPil", None) or transformers.ViTImageProcessor
