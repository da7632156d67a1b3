"""For mkdocs: pages that lie elsewhere in the repository, and links to files of the repository.

All pages can be read on a code host too, so a link is relative to the file that holds it. Where a link leaves docs/,
the file that it names is copied into the site; of a folder, the names of its files are.
"""

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

# Pages of the site that are not written in docs/, and where they are.
PAGES = {
    "quickstart.md": "README.md",
    "image_classification.md": "examples/image_classification/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}

# A link or an image of Markdown, but neither a URL nor an anchor of the same page.
_LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)\s#]+)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_SHOWN_AS_THEY_ARE = {".png", ".svg"}

log = logging.getLogger("mkdocs.hooks.hf_lpsgd")


def on_files(files: Files, *, config: Any) -> Files:
    root = Path(config.config_file_path).parent
    for name, source in PAGES.items():
        if (root / source).is_file():
            files.append(File.generated(config, name, abs_src_path=str(root / source)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    root = Path(config.config_file_path).parent
    source = PAGES.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def in_site(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        return match[1] + _place_in_site(target, source, root, config, files)

    # What looks like a link in code is none.
    parts = _FENCE.split(markdown)
    fences = [*_FENCE.findall(markdown), ""]
    return "".join(_LINK.sub(in_site, part) + fence for part, fence in zip(parts, fences, strict=True))


def _place_in_site(target: str, source: str, root: Path, config: Any, files: Files) -> str:
    for name, elsewhere in PAGES.items():
        if target == elsewhere:
            return name
    if target.startswith("docs/"):
        return target.removeprefix("docs/")  # mkdocs checks it
    path = root / target
    if path.is_dir():
        content = "".join(f"{target}/{entry.name}\n" for entry in sorted(path.iterdir())).encode()
    elif path.is_file():
        content = path.read_bytes()
    else:
        log.warning(f"{source} links to {target}, which is not in the repository")
        return target
    # As text a browser shows it.
    name = f"files/{target}" if path.suffix in _SHOWN_AS_THEY_ARE else f"files/{target}.txt"
    if files.get_file_from_path(name) is None:
        files.append(File.generated(config, name, content=content))
    return name
