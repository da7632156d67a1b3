"""The snippets of a page, and whether a command printed what the page shows.

Before a snippet may stand `<!-- not run: REASON -->`. `<!-- setup: CODE -->` holds Python that the reader does not see
and that the page's next snippets need.
"""

import re
import shlex
from dataclasses import dataclass

from markdown_it import MarkdownIt

LANGUAGES = ("python", "console")

_COMMENT = re.compile(r"<!--\s*(not run|setup):(.*?)-->", re.DOTALL)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Snippet:
    """What one fence or one setup comment holds.

    Attributes:
        language: `python` or `console`.
        text: the code, or commands after `$ ` and lines that they print.
        line: the number of lines of the page before it.
        not_run: the reason why it is not run; None where it is run.
    """

    language: str
    text: str
    line: int
    not_run: str | None = None


def snippets_of(page: str) -> list[Snippet]:
    found, not_run = [], None
    for token in MarkdownIt().parse(page):
        if token.type == "html_block":
            comment = _COMMENT.match(token.content)
            if comment and comment[1] == "setup":
                lines = token.map[0] + comment[2].startswith("\n")
                found.append(Snippet("python", comment[2].strip(), lines))
            elif comment:
                not_run = comment[2].strip()
            continue
        if token.type == "fence" and token.info.split()[:1] and token.info.split()[0] in LANGUAGES:
            found.append(Snippet(token.info.split()[0], token.content, token.map[0] + 1, not_run))
        not_run = None
    return found


def commands_of(text: str) -> list[tuple[str, list[str]]]:
    """The commands of a console snippet, each with the lines that the page shows as its output."""
    commands: list[tuple[str, list[str]]] = []
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("$ "):
            command = line[2:]
            while command.endswith("\\"):
                command += "\n" + next(lines)
            commands.append((command, []))
        elif commands:
            commands[-1][1].append(line)
        else:
            raise ValueError(f"a console snippet begins with a command after '$ ', not with {line!r}")
    return commands


def words_of(command: str) -> list[str]:
    """The words of a command that may go on over several lines."""
    return shlex.split(command.replace("\\\n", " "), comments=True)


def demo_command(makefile: str) -> str:
    """What `make demo` runs."""
    variables = dict(re.findall(r"^(\w+) (?:\?|:)?= ((?:.*\\\n)*.*)$", makefile, re.MULTILINE))
    (command,) = re.findall(r"^\t@(.*run_image_classification\.py.*)$", makefile, re.MULTILINE)
    return re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], command)


def first_line_not_printed(shown: list[str], output: str) -> str | None:
    """The first of the `shown` lines that `output` does not have in its place; None if all are there, in this order.

    `...` stands for anything, also for whole lines. All numbers are taken for equal.
    """
    printed = iter([_without_numbers(line) for line in re.split(r"[\r\n]+", output)])
    for line in shown:
        pieces = _without_numbers(line).split("...")
        if not any(pieces):
            continue
        pattern = re.compile(".*".join(map(re.escape, pieces)))
        if not any(pattern.fullmatch(candidate) for candidate in printed):
            return line
    return None


def _without_numbers(line: str) -> str:
    return " ".join(_NUMBER.sub("0", line).split())
