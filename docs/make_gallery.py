"""Record the pictures of docs/gallery.md: commands on a finished quickstart, 80 columns wide.

python docs/make_gallery.py PARENT, where PARENT/run is a run folder of `pgtg train summarize`.
"""

import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from tests.support.terminal import shown  # noqa: E402

COMMANDS = {
    "dry-run": "train summarize --dry-run",
    "eval": "eval run --split test",
    "report": "report run --metrics rougeLsum,meteor_stem,fact_accuracy",
    "explain": "explain run --n 1",
    "mistake": "train summarize aggregator=mx sample.kk=3",
}


def record(name: str, command: str, parent: Path) -> None:
    """One picture: the command and what it shows."""
    said = shown([sys.executable, "-m", "pgtg", *command.split()], 80, cwd=parent)
    assert said.wide == [], said.text
    text = said.raw.replace("\r\n", "\n").replace(f"{parent.resolve()}/", "")
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=82, file=nowhere, force_terminal=True)
        console.print(Text(f"$ pgtg {command}", "bold"))
        console.print(Text.from_ansi(text))
        svg = console.export_svg(title="pgtg", unique_id=name)
    (HERE / "images" / f"gallery-{name}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    for name, command in COMMANDS.items():
        record(name, command, Path(sys.argv[1]))
