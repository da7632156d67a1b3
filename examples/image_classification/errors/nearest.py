"""What a mistyped name may have been meant to be."""

import difflib
from collections.abc import Iterable
from typing import Any

_MOST_LISTED = 8


def _plain(name: Any) -> str:
    return str(name).lower().replace("-", "_")


def nearest(given: Any, names: Iterable[Any]) -> str | None:
    """The one of `names` that `given` most likely means; None if it is like none of them."""
    plain = {_plain(name): str(name) for name in reversed(list(names))}
    wanted = _plain(given)
    begun = [name for name in reversed(plain) if len(wanted) > 2 and name.startswith(wanted)]
    found = [wanted] if wanted in plain else begun or difflib.get_close_matches(wanted, plain, n=1)
    return plain[found[0]] if found else None


def did_you_mean(given: Any, names: Iterable[Any]) -> str:
    """A question to put after "X is wrong.", with a space before it; empty if nothing is near."""
    name = nearest(given, names)
    return "" if name is None else f" Did you mean {name}?"


def listed(given: Any, names: Iterable[Any]) -> str:
    """`names` as a list; of many, those that are most like `given`."""
    every = [str(name) for name in names]
    shown = every
    if len(every) > _MOST_LISTED:
        guess, wanted = nearest(given, every), _plain(given)

        def unlike(name: str) -> tuple[bool, float]:
            return name != guess, -difflib.SequenceMatcher(None, wanted, _plain(name)).ratio()

        shown = sorted(every, key=unlike)[:_MOST_LISTED]
    rest = f", ...; --help lists all {len(every)}" if len(shown) < len(every) else ""
    return ", ".join(map(repr, shown)) + rest
