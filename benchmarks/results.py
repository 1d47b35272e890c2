"""Put a report's tables into the README, between the marks of a section.

python benchmarks/results.py quickstart outputs/results/quickstart-report "make results-quickstart"

The commit that gave the figures is the runs' own, as their folders tell.
"""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def section(report: Path, command: str) -> str:
    """The report's Markdown, one level deeper, with the command that made it."""
    text = (report / "report.md").read_text(encoding="utf-8")
    title, _, rest = text.partition("\n")
    deeper = re.sub(r"^## ", "#### ", rest, flags=re.MULTILINE)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return f"`{command}`, commit {commit}: {title.removeprefix('# ')}.\n{deeper.rstrip()}\n"


def main(name: str, report: Path, command: str) -> None:
    begin, end = f"<!-- results {name} -->", f"<!-- end of results {name} -->"
    text = README.read_text(encoding="utf-8")
    if begin not in text or end not in text:
        sys.exit(f"{README} has no marks {begin} and {end}")
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2]
    README.write_text(f"{before}{begin}\n{section(report, command)}{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
