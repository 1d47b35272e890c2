"""200 planted preferences for the embedded tiny LM: `python examples/preferences/make.py [FOLDER]`

Writes train.jsonl (160 rows) and validation.jsonl (40 rows) with the columns prompt, chosen and
rejected, by default next to this file. The same seed gives the same bytes.

A row is a review of three aspects. The prompt holds its first clause and a joint, the completions
end it with two more clauses:

    prompt     the plot was neat but
    chosen      music was superb and cast was slow .
    rejected    music was bland and cast was slow .

What is planted: whoever ranked these texts likes the words in LIKED, dislikes those in DISLIKED and
is indifferent to all others. At one or both of the completion's opinions, drawn at random, the
chosen text has a liked word and the rejected one an indifferent word, or the chosen text has an
indifferent word and the rejected one a disliked word. At every other place the two texts have the
same words. So

- the tokens that earned a preference are exactly those where the two texts differ;
- liked words are worth more than indifferent ones, and these more than disliked ones;
- length and position tell nothing: both texts have the same number of words, and the first and the
  second opinion are planted with the same probability.

No prompt comes twice, so the validation prompts are new. All words stand in the vocabulary of
`policy=tiny_lm` (one token a word, split by white space); completions start with a space, so that
prompt + completion is the whole text, as TRL has it.
"""

import json
import random
import sys
from pathlib import Path

SEED, TRAIN, VALIDATION = 0, 160, 40

LIKED = ("superb", "lovely", "brilliant", "stunning")
DISLIKED = ("awful", "dreadful", "horrible", "hopeless")
INDIFFERENT = ("pleasant", "decent", "solid", "fresh", "slow", "bland", "uneven", "tired", "neat")
OPINIONS = (*LIKED, *DISLIKED, *INDIFFERENT)
ASPECTS = ("plot", "cast", "music", "script", "pace", "ending", "staging", "humor", "camera")
JOINTS = (",", "and", "but")
PLANTED = ((True, False), (False, True), (True, True))  # which of the two opinions are

Row = dict[str, str]


def rows(seed: int, n: int) -> list[Row]:
    """`n` preferences with different prompts; fewer rows are the first of more."""
    rng, found = random.Random(f"preferences {seed}"), dict[str, Row]()
    while len(found) < n:
        row = _row(rng)
        found.setdefault(row["prompt"], row)
    return list(found.values())


def _row(rng: random.Random) -> Row:
    first, *aspects = rng.sample(ASPECTS, 3)
    prompt = f"the {first} was {rng.choice(OPINIONS)} {rng.choice(JOINTS)}"
    opinions = [_opinions(rng, planted) for planted in rng.choice(PLANTED)]
    joint = rng.choice(JOINTS)

    def completion(which: int) -> str:
        one, two = (f"{a} was {pair[which]}" for a, pair in zip(aspects, opinions, strict=True))
        return f" {one} {joint} {two} ."

    return {"prompt": prompt, "chosen": completion(0), "rejected": completion(1)}


def _opinions(rng: random.Random, planted: bool) -> tuple[str, str]:
    """An aspect's opinion in the chosen text, and in the rejected one."""
    if not planted:
        same = rng.choice(OPINIONS)
        return same, same
    better, worse = rng.choice(((LIKED, INDIFFERENT), (INDIFFERENT, DISLIKED)))
    return rng.choice(better), rng.choice(worse)


def write(folder: Path) -> None:
    """Both files, into a folder that is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    made = rows(SEED, TRAIN + VALIDATION)
    for name, part in (("train", made[:TRAIN]), ("validation", made[TRAIN:])):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
