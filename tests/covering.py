"""`@pytest.mark.covering("a", "b")`: which rows of a parametrised test `make test` runs.

As few as have each value of every parameter, and each combination of the parameters named. The others are marked
`exhaustive`, and `make test-all` runs them too.
"""

import itertools

import pytest


def _covers(item, names):
    """What one row is there for: each of its values, and the combination of those that are named."""
    values = {name: repr(value) for name, value in item.callspec.params.items()}
    return {*values.items(), tuple(values[name] for name in names)}


@pytest.hookimpl(tryfirst=True)  # before `-m "not exhaustive"` chooses
def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("covering")]
    for _, rows in itertools.groupby(marked, key=lambda item: (item.path, item.originalname)):
        rows = list(rows)
        names = rows[0].get_closest_marker("covering").args
        missing = set().union(*(_covers(row, names) for row in rows))
        while missing:
            best = max(rows, key=lambda row: len(_covers(row, names) & missing))
            missing -= _covers(best, names)
            rows.remove(best)
        for row in rows:
            row.add_marker("exhaustive")
