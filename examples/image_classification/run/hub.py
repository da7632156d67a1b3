"""A Trainer that pushes its own model card and reports every push that fails."""

import inspect
import json
import os
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from card.facts import RunFacts
from card.writing import write_model_card
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
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
        repo_id = api.create_repo(name, private=args.hub_private_repo, exist_ok=True).repo_id
        if "write" in inspect.signature(api.auth_check).parameters:
            api.auth_check(repo_id, write=True)
        api.model_info(repo_id, revision=getattr(args, "hub_revision", None))
    except Exception as error:  # of the many kinds that the client and its transport raise
        return explain(error)
    return None


def explain(error: BaseException) -> str:
    """What a failed call of the Hub's client means, in one line without a token."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    hub = constants.ENDPOINT
    for one in chain:
        if isinstance(one, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set"
        if isinstance(one, HfHubHTTPError):
            status = one.response.status_code
            said = one.response.headers.get("X-Error-Message") or one.server_message or one.response.reason_phrase
            meaning = {
                401: f"{hub} does not accept the token",
                403: f"{hub} does not let this token write there",
                404: f"{hub} has no such repository or revision",
            }.get(status, f"{hub} answered with an error")
            return _one_line(f"{meaning} ({status}: {said})")
        # httpx, whose name and version depend on those of huggingface_hub
        if any(kind.__name__ == "TransportError" for kind in type(one).__mro__):
            return _one_line(f"{hub} cannot be reached ({one or type(one).__name__})")
    if isinstance(error, json.JSONDecodeError):
        return f"{hub} gave an answer that is no JSON, as servers do that are down"
    return _one_line(f"{type(error).__name__}: {error}")


def _one_line(text: str) -> str:
    token = get_token()
    return " ".join((text.replace(token, "***") if token else text).split())


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
            self.push_to_hub(commit_message=commit_message)
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
