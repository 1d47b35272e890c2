"""What can be asked of the comparison, as one typed object."""

import argparse
from dataclasses import dataclass, fields
from pathlib import Path

K = 3  # generations of a source
ROWS = tuple(range(1, 11))
NEEDS_TEXTS = {1, 2, 3, 4, 5, 9, 10}
NEEDS_EXAMPLES = {6, 7, 8}
UNPROFILED = {8, 10}


@dataclass(frozen=True)
class Options:
    """The command line's options; `parse` says what each is."""

    reference: Path
    evaluate: Path | None
    meteor: Path | None
    examples: Path | None
    texts: Path | None
    only: list[int]
    repeats: int
    threads: int
    size: str
    save: Path | None
    profile: bool
    sources: int
    source_tokens: int
    tokens: int
    new: int
    prompts: int
    classifier: str
    policy_steps: int
    reward_epochs: int
    memory: str | None

    @property
    def tiny(self) -> bool:
        return self.size == "tiny"


def parse(description: str) -> Options:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--reference", type=Path, required=True, help="a clone of the reference's repository")
    add(
        "--evaluate", type=Path, help="folder of `pip install --target`, if not in this environment"
    )
    add("--meteor", type=Path, help="meteor.py of the evaluate repository; else it is downloaded")
    add("--examples", type=Path, help="folder with SST-2's 16-shot train.tsv (rows 6-8)")
    add("--texts", type=Path, help="SciTLDR's train.jsonl: document, summary (rows 1-5, 9, 10)")
    add("--only", type=int, nargs="+", choices=ROWS, metavar="ROW", help="some rows of 1 to 10")
    add("--repeats", type=int, default=3, help="timed calls a side, after one that warms up")
    add("--threads", type=int, default=1, help="of torch, on both sides")
    add("--size", choices=["paper", "tiny"], default="paper", help="tiny: only that all runs")
    add("--save", type=Path, metavar="FILE", help="write the rows as json")
    add("--profile", action="store_true", help="where pgtg's time goes instead (not rows 8, 10)")
    add("--sources", type=int, default=8, help="summarize: texts of a micro-batch")
    add("--source-tokens", type=int, default=512, help="tokens of each text")
    add("--tokens", type=int, default=64, help="tokens of each generation and target")
    add("--new", type=int, default=128, help="longest generation of row 3's spread lengths")
    add("--prompts", type=int, default=16, help="prompt: prompts drawn and judged in a reward step")
    add("--classifier", choices=["base", "large"], default="base", help="RoBERTa's size")
    add("--policy-steps", type=int, default=10, help="row 5: policy steps a reward step")
    add("--reward-epochs", type=int, default=8, help="row 8: epochs of a reward training")
    add("--memory", choices=["ours", "reference"], help=argparse.SUPPRESS)  # row 10's own process
    asked = parser.parse_args()
    rows = set(ROWS) - UNPROFILED if asked.profile else set(ROWS)
    asked.only = sorted(set(asked.only or rows))
    if asked.profile and UNPROFILED & set(asked.only):
        parser.error("--profile: rows 8 and 10 have no single call to profile")
    if NEEDS_TEXTS & set(asked.only) and not asked.texts:
        parser.error("rows 1-5, 9 and 10 need --texts")
    if NEEDS_EXAMPLES & set(asked.only) and not asked.examples:
        parser.error("rows 6-8 need --examples")
    return Options(**{field.name: getattr(asked, field.name) for field in fields(Options)})
