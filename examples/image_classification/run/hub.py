"""A Trainer that pushes its own model card and reports every push that fails."""

import inspect
import os
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from card.facts import RunFacts
from card.writing import write_model_card
from errors.fail import fail
from errors.hub import explain, patiently
from huggingface_hub import HfApi, get_token
from transformers import Trainer, TrainerCallback, TrainingArguments


def keep_token_out_of_files(args: TrainingArguments) -> None:
    """Move `args.hub_token`, if there is one, to the environment, where the Hub's client finds it.

    The Trainer saves its arguments in `training_args.bin`, which it pushes, with a token in them as it stands.
    """
    if args.hub_token:
        os.environ["HF_TOKEN"] = args.hub_token
        args.hub_token = None


def check_push(args: TrainingArguments) -> str | None:
    """Create the repository that `args` names, unless it is there, and see whether it may be written to.

    Only the first process connects. Call it before training: then a wrong token costs no more than a second.

    Args:
        args: training arguments, after `keep_token_out_of_files`.

    Returns:
        Why a push would fail, in one line; None if it would not.
    """
    if args.process_index > 0:
        return None
    api = HfApi()
    try:
        if get_token() is None:
            return "there is no token: log in with `hf auth login`, or set HF_TOKEN"
        name = args.hub_model_id or Path(str(args.output_dir)).absolute().name
        repo_id = patiently(lambda: api.create_repo(name, private=args.hub_private_repo, exist_ok=True)).repo_id
        if "write" in inspect.signature(api.auth_check).parameters:
            patiently(lambda: api.auth_check(repo_id, write=True))
        patiently(lambda: api.model_info(repo_id, revision=getattr(args, "hub_revision", None)))
    except Exception as error:  # of the many kinds that the client and its transport raise
        return explain(error)
    return None


class CardTrainer(Trainer):
    """A Trainer that writes a model card of its own, pushes it with the model, and reports failed pushes.

    Args:
        facts: what the card states and the Trainer does not know.
        args, kwargs: those of the Trainer.

    Attributes:
        background_pushes: the pushes begun during training, finished or not.
    """

    def __init__(self, *args: Any, facts: RunFacts, **kwargs: Any) -> None:
        self.facts = facts
        self.saving = False
        self.background_pushes: list[Future[Any]] = []
        super().__init__(*args, **kwargs)
        self.add_callback(_Pushes(self))

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Called when the Trainer is made."""
        try:
            patiently(lambda: Trainer.init_hf_repo(self, *args, **kwargs))
        except Exception as error:  # of the many kinds that the client and its transport raise
            fail(f"--push_to_hub cannot work, so nothing was trained: {explain(error)}")

    def write_card(self) -> str | None:
        """Write `README.md` and the curves into the output folder; on the main process only.

        Returns:
            Why there is no picture of the curves; None if there is one.
        """
        return write_model_card(self, self.facts) if self.is_world_process_zero() else None

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Called by `push_to_hub`. The arguments are for the Trainer's generic card and are ignored."""
        self.write_card()

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Save without a push. The Trainer's own method also pushes, before there are results for the card."""
        self.saving = True
        try:
            super().save_model(*args, **kwargs)
        finally:
            self.saving = False

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        return None if self.saving else super().push_to_hub(*args, **kwargs)

    def push_all(self, commit_message: str = "End of training") -> str | None:
        """Push what is in the output folder, as `push_to_hub` does, but let no error end the run.

        Returns:
            Why it failed, in one line; None if it did not, and on other processes than the first.
        """
        try:
            patiently(lambda: self.push_to_hub(commit_message=commit_message))
        except Exception as error:  # of the many kinds that the client and its transport raise
            return explain(error)
        return None

    def failed_pushes(self) -> list[str]:
        """Why pushes during training failed, one line each."""
        done = [push for push in self.background_pushes if push.done() and not push.cancelled()]
        return [explain(error) for error in (push.exception() for push in done) if error is not None]


class _Pushes(TrainerCallback):
    def __init__(self, trainer: CardTrainer) -> None:
        self.trainer = trainer

    def on_push_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # With `hub_always_push` the Trainer would overwrite the files that an earlier push is still reading.
        wait(self.trainer.background_pushes)
        if self.trainer.is_in_train:  # later `create_model_card` writes it
            self.trainer.write_card()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # The Trainer keeps only the latest, and never checks whether they failed.
        pushes = getattr(self.trainer, "push_in_progress", None)
        known = self.trainer.background_pushes
        known.extend(push for push in (pushes.jobs if pushes is not None else []) if push not in known)
