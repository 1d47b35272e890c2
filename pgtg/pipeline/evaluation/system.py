"""What is evaluated, and what an evaluation is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pgtg.pipeline.context import Context
from pgtg.runs.folder import Artifact

Results = dict[str, Any]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class System:
    """One row of a result table.

    Args:
        name: "start", the method, a control, a baseline.
        policy: Folder of its policy; None for the policy that the run starts from.
        parents: Artifacts that it rests on.
        control: The line of the run that it belongs to, "" for the run's own.
        write: What writes its texts of sources and a sentence splitter, in a policy's place.
    """

    name: str
    policy: Path | None = None
    parents: Sequence[Artifact] = field(default=())
    control: str = ""
    write: Any = None


class Evaluation(Protocol):
    """Results of a task's systems on one split.

    Results hold "system", "split", "examples", "data" (a hash of the examples), "metrics" (what
    the numbers depend on), "absent" (metrics that could not be computed, with the reason) and
    "decodings": name -> {"decoding", "mean": column -> mean over examples}.
    """

    def systems(self, ctx: Context) -> list[System]:
        """What a finished run is evaluated as."""
        ...

    def unavailable(self, ctx: Context, split: str) -> str | None:
        """Why nothing is evaluated on a split; None where something is."""
        ...

    def depends_on(self, ctx: Context) -> Mapping[str, Any]:
        """What results depend on apart from the systems."""
        ...

    def results(self, ctx: Context, system: System, split: str) -> tuple[Results, dict[str, Rows]]:
        """Results, and per-example rows by decoding."""
        ...

    def show(self, ctx: Context, title: str, split: str, results: Mapping[str, Results]) -> None:
        """Print the tables of one split."""
        ...

    def verdicts(self, ctx: Context, splits: Sequence[str]) -> None:
        """Say in words where the method helps, and where it does not."""
        ...
