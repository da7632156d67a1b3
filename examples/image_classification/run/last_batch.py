"""The last batch of an epoch, which may be smaller: what is left out of training, and never of an evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from errors.fail import fail, warn
from models.trial import why_not_trained_on
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import has_length


def is_left_out(model: Any, processor: Any, images: int | None, batch: int, processes: int, option: str) -> bool:
    """Whether the last batch is left out, as `model` cannot be trained on it. Batch norm may need two images.

    Args:
        model, processor: what is trained, and its image processor.
        images: how many there are in an epoch; None: a stream, whose batches are all of one size.
        batch: how many each process takes at once.
        processes: of several, each is given whole batches.
        option: the one that says how many.
    """
    is_lone = images is not None and processes == 1 and images % batch == 1
    if batch > 1 and not is_lone:
        return False
    problem = why_not_trained_on(1, model, processor)
    if problem is None or why_not_trained_on(2, model, processor) is not None:
        return False
    if batch == 1 or images == 1:
        fail(f"this model cannot be trained on one image at a time: {problem}. Pass {option} 2 or more")
    warn(f"the last batch of each epoch, of one image, is left out, as this model cannot be trained on it: {problem}")
    return True


class LastBatchTrainer(Trainer):
    """A Trainer that leaves the last batch out of training where it must, and never out of an evaluation.

    Attributes:
        leaves_out_last: whether it must.
    """

    leaves_out_last = False

    @contextmanager
    def dropping(self, last: bool) -> Iterator[None]:
        given = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = last
        try:
            yield
        finally:
            self.args.dataloader_drop_last = given

    def get_train_dataloader(self) -> DataLoader:
        with self.dropping(self.args.dataloader_drop_last or self.leaves_out_last):
            loader = super().get_train_dataloader()
        if has_length(loader) and len(loader) == 0:
            fail("--dataloader_drop_last leaves no batch to train on: there are fewer images than a batch takes")
        return loader

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        with self.dropping(False):
            return super().get_eval_dataloader(*args, **kwargs)
