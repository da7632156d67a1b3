"""The example's folders: beside the README stand the two scripts and rooms, and rooms know only those below them."""

import ast

from paths import IMAGE_CLASSIFICATION, LOOP_SCRIPT, TRAINER_SCRIPT

# Each room, and those that it may import from.
ROOMS = {
    "errors": set(),
    "images": {"errors"},
    "models": {"errors", "images"},
    "card": set(),
    "run": {"errors", "images", "models", "card"},
}


def imported_by(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


def test_beside_the_readme_stand_the_two_scripts_and_rooms():
    assert set(IMAGE_CLASSIFICATION.glob("*.py")) == {TRAINER_SCRIPT, LOOP_SCRIPT}
    assert {file.parent.name for file in IMAGE_CLASSIFICATION.glob("*/*.py")} == ROOMS.keys()


def test_a_room_imports_only_from_the_rooms_below_it():
    for room, below in ROOMS.items():
        files = list((IMAGE_CLASSIFICATION / room).glob("*.py"))
        assert files
        known = {name for file in files for name in imported_by(file)}
        assert known & (ROOMS.keys() | {TRAINER_SCRIPT.stem, LOOP_SCRIPT.stem}) <= below
