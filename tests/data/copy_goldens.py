"""How goldens.json was made: figures of the reference's formulas, copied and nothing else.

    python tests/data/copy_goldens.py pgtg_goldens.json

The given file has them as evaluated in float64, apart from this package, by the formulas of the
authors' released code on fixed random inputs: per formula a list of cases, inputs and outputs
together. Only the formulas that a test reads are kept.
"""

import json
import sys
from pathlib import Path

GOLDENS = Path(__file__).with_name("goldens.json")
KINDS = ("aggregate", "plackett_luce", "bounded_reward_softplus", "reward_weighted_mle")
KINDS += ("reinforce_max_entropy", "prompt_gap_reward")


def copy(source: Path) -> None:
    """One line a case, so that a change shows where it is."""
    found = json.loads(source.read_text(encoding="utf-8"))
    cases = {
        kind: found[kind] if isinstance(found[kind], list) else [found[kind]] for kind in KINDS
    }
    kinds = (
        f"{json.dumps(kind)}: [\n" + ",\n".join(json.dumps(case) for case in rows) + "\n]"
        for kind, rows in cases.items()
    )
    GOLDENS.write_text("{\n" + ",\n".join(kinds) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    copy(Path(sys.argv[1]))
