"""Names in a line: the first few, and how many more there are."""

from collections.abc import Sequence


def some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def counted(names: Sequence[str], what: str) -> str:
    """How many `what` there are, and which: `2 images (a.png, b.png)`."""
    return f"{len(names):,} {what}{'s' if len(names) > 1 else ''} ({some(names)})"
