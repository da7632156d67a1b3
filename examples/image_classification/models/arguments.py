"""The flags that say which model is trained."""

from dataclasses import dataclass, field

from errors.fail import fail


@dataclass
class ModelArguments:
    """Which model is trained."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Pretrained model to start from: a Hub name or a local folder."}
    )
    model_type: str | None = field(
        default=None,
        metadata={
            "help": "Architecture to train from scratch: vit, resnet, convnext, swin or another of transformers; or, "
            "for small images, cifar_resnet (ResNet-18) or cifar_vgg (VGG-11). Default: vit; up to 64 pixels a small "
            "one, unless there are --config_overrides."
        },
    )
    config_overrides: str | None = field(
        default=None,
        metadata={"help": "Changes to the from-scratch config: 'hidden_size=192,depths=[1,1]', or a JSON object."},
    )
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Replace a pretrained head whose number of classes differs."}
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the pretrained model."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where models and datasets are cached."})

    def check(self, image_size: int | None) -> None:
        """End the run with one line where a flag is only for a model from scratch, and this one is pretrained."""
        flags = {"model_type": self.model_type, "config_overrides": self.config_overrides, "image_size": image_size}
        for name, value in flags.items():
            if self.model_name_or_path and value:
                fail(f"--{name} {value} is for a model from scratch, and --model_name_or_path has one: leave one out")

    @property
    def chosen(self) -> bool:
        """Whether an option says which model is trained."""
        return any((self.model_name_or_path, self.model_type, self.config_overrides))
