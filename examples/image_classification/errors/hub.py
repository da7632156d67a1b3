"""What failed calls of the Hub's client mean."""

import json
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from huggingface_hub import constants, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

Result = TypeVar("Result")
BUSY = (429, 502, 503, 504)
WAITS = (1, 2, 4)  # seconds


def _causes(error: BaseException) -> Iterator[BaseException]:
    known: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in known:
        yield one
        known.append(one)
        one = one.__cause__ or one.__context__


def explain(error: BaseException) -> str:
    """What a failed call of the Hub's client means, in one line without a token."""
    hub = constants.ENDPOINT
    for one in _causes(error):
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


def hub_is_busy(error: BaseException) -> str | None:
    """What `error` means, in one line, if it is that the Hub has too much to do; else None."""
    for one in _causes(error):
        if isinstance(one, HfHubHTTPError) and one.response is not None and one.response.status_code in BUSY:
            return f"{explain(one)}; try again later"
    return None


def patiently(call: Callable[[], Result]) -> Result:
    """What `call` returns. While the Hub is busy it is made again, three times at most."""
    for wait in WAITS:
        try:
            return call()
        except Exception as error:
            if hub_is_busy(error) is None:
                raise
        time.sleep(wait)
    return call()


def _one_line(text: str) -> str:
    token = get_token()
    return " ".join((text.replace(token, "***") if token else text).split())
