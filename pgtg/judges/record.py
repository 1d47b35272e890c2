"""What a judge said of prompts that are drawn in the course of a training, on the disk.

Each draw has a place of its own in a file, so that writing it again changes nothing: what was
judged is counted once however often the training was resumed. A finished stage keeps its draws as
one table, `judged.parquet`: split, tokens, and the mean score over the split's examples.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from pgtg.errors import ArtifactError
from pgtg.runs.files import put_at, read_table, write_table
from pgtg.runtime import distributed

TABLE = "judged.parquet"


class Record:
    """Draws of equally many prompts of one length, by number.

    Args:
        path: Its file; made when something is put.
        number: Prompts of a draw.
        length: Tokens of a prompt.
    """

    def __init__(self, path: Path, number: int, length: int):
        self.path, self.number = path, number
        self._row = np.dtype([("tokens", "<i4", (length,)), ("score", "<f8")])

    @property
    def made(self) -> int:
        """Draws that are whole on the disk, if they were put one after the other."""
        rows = self.path.stat().st_size // self._row.itemsize if self.path.exists() else 0
        return rows // self.number

    def put(
        self, draw: int, tokens: Sequence[Sequence[int]], scores: Float[np.ndarray, " P"]
    ) -> None:
        """Consecutive draws from number `draw` on, which are on the disk when this returns."""
        rows = np.zeros(len(tokens), self._row)
        rows["tokens"], rows["score"] = np.array(tokens, np.int32), scores
        self._write(draw * self.number * self._row.itemsize, rows.tobytes())

    def read(self, draws: int) -> np.ndarray:
        """Rows (tokens, score) of the first `draws` draws.

        Raises:
            ArtifactError: The file is shorter.
        """
        wanted = draws * self.number
        found = np.fromfile(self.path, self._row, wanted) if wanted else np.zeros(0, self._row)
        if len(found) < wanted:
            raise ArtifactError(
                f"{self.path}: {len(found)} of {wanted} judged prompts: delete its folder, and the "
                "stage is done again"
            )
        return found

    @distributed.first
    def _write(self, at: int, data: bytes) -> None:
        put_at(self.path, at, data, cut=False)


def write_judged(
    folder: Path, records: Mapping[str, Record], draws: Mapping[str, int], stage: str
) -> dict[str, float]:
    """Put the first draws of each split's record into the folder's table, in the records' place.

    Returns:
        Prompts by split, as metrics: "<stage>/<split>_judged_prompts".
    """
    counts = {split: draws[split] * record.number for split, record in records.items()}
    _write_table(folder, records, draws)
    return {f"{stage}/{split}_judged_prompts": float(n) for split, n in counts.items()}


@distributed.first
def _write_table(folder: Path, records: Mapping[str, Record], draws: Mapping[str, int]) -> None:
    if not (folder / TABLE).is_file():
        rows = {split: record.read(draws[split]) for split, record in records.items()}
        columns = {
            "split": [split for split, own in rows.items() for _ in range(len(own))],
            "tokens": [ids for own in rows.values() for ids in own["tokens"].tolist()],
            "score": [score for own in rows.values() for score in own["score"].tolist()],
        }
        write_table(folder / TABLE, columns, {"tokens": "int32"})
    for record in records.values():
        record.path.unlink(missing_ok=True)


def read_judged(path: Path, split: str) -> dict[tuple[int, ...], float]:
    """Distinct prompts of a table with their scores on a split.

    Raises:
        ArtifactError: The table is damaged.
    """
    table = read_table(path, ["split", "tokens", "score"])
    rows = zip(table["split"], table["tokens"], table["score"], strict=True)
    return {tuple(tokens): score for own, tokens, score in rows if own == split}
