"""`pgtg export tokens`: token rewards as the lists that other trainers take.

Of each completion:

- r_t, the reward;
- A_t = r_t - mean_t r_t, the reward centred over the completion's own tokens, for policy gradients;
- w_t = g(r_t) / sum g(r), the weight of reward-weighted maximum likelihood with the run's own g;
  over a completion it adds up to 1. With `method.weights` threshold or sign: 1/|y|, or less.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgtg.errors import ConfigError
from pgtg.explain.credit import Group
from pgtg.explain.runs import Reader, Run, in_tokens, open_reader, rewards_in
from pgtg.explain.texts import of_run, of_user
from pgtg.explain.write import format_of
from pgtg.export.folder import require_free
from pgtg.ops.aggregate import padded
from pgtg.ops.masking import masked_mean
from pgtg.runs.folder import write_jsonl, write_table
from pgtg.runs.log import RunLog


@dataclass(frozen=True)
class Asked:
    """Which texts; see `pgtg export tokens --help`."""

    text: Path | None = None
    split: str | None = None
    round: int | None = None
    n: int | None = None


def export_tokens(
    path: Path, out: Path, asked: Asked, *, format: str | None, force: bool, log: RunLog
) -> None:
    """Write one row for each completion, with a reward, an advantage and a weight for each token.

    Args:
        path: A run folder, or an exported reward model.
        out: File to write.
        format: "jsonl" or "parquet"; None: as the file's name ends.
        force: Replace a file that is there.

    Raises:
        ConfigError: Options that do not go together, or a file that is there already.
        ArtifactError: Neither a run with a reward model, nor an exported one.
        DataError: No text that can be read.
    """
    form = format_of(out, format)
    require_free(out, force=force)
    reader = open_reader(path)
    rows = [*token_rows(reader, _texts(reader, asked, log), log)]
    if form == "parquet":
        write_table(out.resolve(), {name: [row[name] for row in rows] for name in rows[0]})
    else:
        write_jsonl(out.resolve(), rows)
    log.say(f"{len(rows)} completions written to {out}")


def _texts(reader: Reader, asked: Asked, log: RunLog) -> list[Group]:
    if asked.text is not None:
        if asked.split is not None or asked.round is not None:
            raise ConfigError("--text with --split or --round: the texts are yours or the run's")
        return of_user(reader, asked.text, asked.n, log).groups
    if not isinstance(reader, Run):
        raise ConfigError(f"{reader.path}: an exported reward model has no texts: give --text FILE")
    split = asked.split or (None if reader.sourceless else "train")
    return of_run(reader, split, asked.n, log, round=asked.round).groups


def token_rows(reader: Reader, groups: list[Group], log: RunLog) -> Iterator[dict[str, Any]]:
    """The rows of all completions, those of a prompt after each other."""
    cut = in_tokens(reader, groups, reader.codec)
    rewards = rewards_in(reader, groups, cut, reader.codec)
    lost = {
        "prompts": (sum(was for _, was in cut.sources), reader.codec.max_source_tokens),
        "completions": (
            sum(was for found in cut.texts for _, _, was in found),
            reader.codec.max_target_tokens,
        ),
    }
    for what, (number, most) in lost.items():
        if number:
            log.warn(f"{number} {what} cut to {most} tokens, as the run reads them")
    scored = any(passage.score is not None for group in groups for passage in group.passages)
    for group, (source, _), texts, values in zip(
        groups, cut.sources, cut.texts, rewards, strict=True
    ):
        r, mask = padded(values)
        advantages = r - masked_mean(r, mask)[:, None]
        weights = reader.about.weights(r, mask)
        for n, (passage, (text, tokens, _)) in enumerate(zip(group.passages, texts, strict=True)):
            own = slice(len(tokens))
            row = {
                "id": group.id,
                "prompt": group.source,
                "completion": text,
                "prompt_ids": list(source),
                "completion_ids": [piece.id for piece in tokens],
                "offsets": [[piece.start, piece.end] for piece in tokens],
                "reward": r[n, own].tolist(),
                "advantage": advantages[n, own].tolist(),
                "weight": weights[n, own].tolist(),
            }
            yield row | ({"score": passage.score} if scored else {})
