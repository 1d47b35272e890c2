"""Write docs/configuration.md from the comments of the yaml files and the types of the schema.

python docs/make_configuration.py
"""

import itertools
import re
from pathlib import Path

from pgtg.config import expected_type
from pgtg.config.comments import rows
from pgtg.config.groups import CONF, SECTIONS, groups, option_files

PAGE = Path(__file__).with_name("configuration.md")
INTRO = """# Configuration

Made by `make docs` from the yaml files in `conf/` and the schema; change those. Any key can stand
on the command line as `key=value`, and a group as `group=option` (policy=t5_small). The tables show
each task's own keys, then the keys of each option of a group.
"""


def table(file: Path, section: str) -> str:
    """A file's keys as Markdown, below what its first lines say."""
    text = file.read_text(encoding="utf-8")
    first = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    head = " ".join(line[2:] for line in first if "@package" not in line)
    if base := re.search(r"^  - (\w+) # what is not said here$", text, re.MULTILINE):
        head += f" All else is as in {file.parent.name}={base[1]}."
    lines = ["| key | type | value | |", "|---|---|---|---|"]
    for key, value, comment in rows(file, section):
        if key.split(".")[0] in ("defaults", "hydra"):
            continue
        cells = [f"`{key}`", expected_type(key) or "", f"`{value}`" if value else "", comment]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return head + "\n\n" + "\n".join(lines) + "\n"


def page() -> str:
    """The whole page."""
    parts = [INTRO]
    parts += [f"## {file.stem}\n\n{table(file, '')}" for file in option_files("")]
    for group in groups():
        if group == "experiment":  # overlays: their keys are those above
            continue
        for file in sorted((CONF / group).rglob("*.yaml")):
            option = file.relative_to(CONF / group).with_suffix("")
            parts.append(f"## {group}={option}\n\n{table(file, SECTIONS.get(group, group))}")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
