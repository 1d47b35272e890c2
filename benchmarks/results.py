"""Put a report's tables into docs/results.md, between the marks of a section.

python benchmarks/results.py quickstart outputs/results/quickstart-report "make results-quickstart"

The commit is that of the runs, as their folders tell. Of the paired tests only those rows are shown
that show a difference; intervals of means, costs and reward diagnostics stay in the report.
"""

import json
import re
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "results.md"
KEPT = r"mean \(sd\)|difference"  # in the headings of what the page shows


def commits(report: Path) -> str:
    """The commits that gave the runs of a report."""
    rows = json.loads((report / "report.json").read_text())["rows"]
    found = set()
    for run in {run for row in rows for run in row["runs"].values()}:
        git = json.loads((Path(run) / "provenance.json").read_text())["git"]
        found.add(git["commit"][:7] + (" with changes" if git["changed"] else ""))
    return ", ".join(sorted(found))


def without_nothing(part: str) -> str:
    """A part of the report without rows that show no difference, which are counted."""
    lines = part.rstrip().splitlines()
    found = [line for line in lines if not line.endswith("no difference shown |")]
    said = f"\n\n{len(lines) - len(found)} further rows show no difference."
    return "\n".join(found) + (said if len(found) < len(lines) else "")


def section(report: Path, command: str) -> str:
    """The report's main tables, one level deeper, with the command and the commit behind them."""
    title, *parts = (report / "report.md").read_text(encoding="utf-8").split("\n## ")
    headline = title.splitlines()[0].removeprefix("# ")
    shown = [part for part in parts if re.search(KEPT, part.splitlines()[0])]
    kept = [f"### {without_nothing(part)}\n" for part in shown]
    return "\n".join([f"`{command}`, commit {commits(report)}: {headline}.\n", *kept])


def main(name: str, report: Path, command: str) -> None:
    begin, end = f"<!-- results {name} -->", f"<!-- end of results {name} -->"
    text = PAGE.read_text(encoding="utf-8")
    if begin not in text or end not in text:
        sys.exit(f"{PAGE} has no marks {begin} and {end}")
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2]
    PAGE.write_text(f"{before}{begin}\n{section(report, command)}{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
