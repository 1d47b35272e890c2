"""What a search may ask the classifier about: a text, its tokens, or vectors on top of tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from pgtg.errors import ArtifactError
from pgtg.judges.finetuned import Tuned
from pgtg.judges.template import Prompt
from pgtg.runs.files import load_tensors, read_json, save_tensors, write_json

FOUND, VECTORS = "found.json", "found.safetensors"
HOW = ("template", "edited", "tokens", "block")  # in which way the classifier reads it


@dataclass(frozen=True)
class Candidate:
    """Something that stands in a template and leads the classifier.

    Args:
        prompt: Its text, for tables too; `ids` where its tokens are the classifier's own.
        template: Which of the data set's templates it stands in; "" is the judge's own.
        edited: Whether it takes the place of that template's instruction, not of {prompt}.
        tokens: Whether its ids are put in as they are, in a template that is tokenised piece by
            piece and without white space around the prompt.
        offset: Vectors that are added to the embeddings of these tokens.
        block: Whether they are added to the output of the embedding block instead.
        tuned: Weights of a copy of the classifier that reads texts in its place.
    """

    prompt: Prompt
    template: str = ""
    edited: bool = False
    tokens: bool = False
    offset: Float[np.ndarray, "L D"] | None = None
    block: bool = False
    tuned: Tuned | None = None

    def row(self) -> dict[str, Any]:
        """What of it stands in tables; vectors are told by their size."""
        ids = self.prompt.ids
        found: dict[str, Any] = {"text": self.prompt.text}
        found |= {} if ids is None else {"ids": list(ids)}
        return found if self.offset is None else found | {"vectors": list(self.offset.shape)}


def save_found(folder: Path, candidates: Sequence[Candidate]) -> None:
    """Keep what a search ended with, its own choice first."""
    rows = [one.row() | {key: getattr(one, key) for key in HOW} for one in candidates]
    for row, one in zip(rows, candidates, strict=True):
        if one.tuned is not None:  # its file stands next to this one
            row["tuned"] = [one.tuned.path.name, one.tuned.kind, one.tuned.max_tokens]
    write_json(folder / FOUND, rows)
    vectors = {
        str(i): torch.from_numpy(one.offset)
        for i, one in enumerate(candidates)
        if one.offset is not None
    }
    if vectors:
        save_tensors(folder / VECTORS, vectors)


def read_found(folder: Path) -> list[Candidate]:
    """What `save_found` kept.

    Raises:
        ArtifactError: A file is damaged.
    """
    rows, path = read_json(folder / FOUND), folder / VECTORS
    vectors = load_tensors(path) if path.is_file() else {}
    try:
        return [_candidate(folder, row, vectors.get(str(i))) for i, row in enumerate(rows)]
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder / FOUND} holds no candidates: {error!r}") from error


def _candidate(folder: Path, row: Mapping[str, Any], vectors: torch.Tensor | None) -> Candidate:
    ids = tuple(row["ids"]) if "ids" in row else None
    offset = None if vectors is None else vectors.numpy()
    tuned = None
    if "tuned" in row:
        name, kind, max_tokens = row["tuned"]
        tuned = Tuned(folder / Path(name).name, kind, max_tokens)
    how = {key: row[key] for key in HOW}
    return Candidate(Prompt(row["text"], ids), offset=offset, tuned=tuned, **how)
