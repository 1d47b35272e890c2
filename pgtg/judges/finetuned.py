"""A copy of the classifier LM that is fine-tuned: with a head of its own, or by its label words.

"head": dropout, a dense layer, tanh, dropout and one output for each class, on the state at the
first token of the text alone (masked LM) or at the last token of the template's text (causal LM).
"prompt": the logits of the label words where the template is answered.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pgtg.errors import ArtifactError
from pgtg.judges.rendering import Rendered, Renderer
from pgtg.judges.template import Prompt
from pgtg.models.language import evaluating
from pgtg.models.special_tokens import frame
from pgtg.ops.masking import length_sorted, pad
from pgtg.ops.sampling import seeded
from pgtg.runs.files import load_tensors, save_tensors
from pgtg.types import Labelled

KINDS = ("head", "prompt")
HEAD_DROPOUT = 0.1
BATCH_TOKENS = 4096  # padded tokens of a pass without gradients


@dataclass(frozen=True)
class Tuned:
    """Trained weights, and how they are read.

    Args:
        path: safetensors of what was trained, by parameter name.
        kind: "head" or "prompt".
        max_tokens: Longest row; of a text alone the end is cut.
    """

    path: Path
    kind: str
    max_tokens: int


class FineTuned(nn.Module):
    """The LM and what is on top of it.

    Args:
        model: A masked or causal LM of its own, whose weights may change.
        renderer: Of the template that is answered.
        label_ids: The token of each label word.
        layers: Train only the top layers and the head; None for all weights.
        seed: Of the head's first weights.
    """

    def __init__(
        self,
        model: Any,
        renderer: Renderer,
        label_ids: Sequence[int],
        *,
        kind: str,
        max_tokens: int,
        layers: int | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.model, self._renderer, self._kind = model, renderer, kind
        self._max_tokens, self._words = max_tokens, list(label_ids)
        model.requires_grad_(True)
        if layers is not None:
            _train_top(model, layers)
        self.head: nn.Module | None = None
        if kind == "head":
            below = {id(p) for p in model.base_model.parameters()}
            for parameter in model.parameters():  # the LM head answers nothing here
                parameter.requires_grad_(parameter.requires_grad and id(parameter) in below)
            width = model.get_input_embeddings().weight.shape[1]
            self.head = _head(width, len(self._words), model.config, seed)

    def rows(self, texts: Sequence[str]) -> list[Rendered]:
        """How texts are read: alone, or in the template."""
        if self._kind == "prompt" or not self._renderer.template.masked:
            return self._renderer.render(Prompt(""), texts)
        before, after = frame(self._renderer.tokenizer)
        room = self._max_tokens - len(before) - len(after)
        found = []
        for text in texts:
            ids = self._renderer.tokenizer(text, add_special_tokens=False, verbose=False)
            own = list(ids["input_ids"])
            found.append(Rendered([*before, *own[:room], *after], 0, len(own) > room))
        return found

    def logits(self, rows: Sequence[Rendered], *, vocabulary: bool = False) -> Float[Tensor, "E C"]:
        """Of the classes; with `vocabulary` (kind "prompt") of all words."""
        device = self.model.device
        ids, mask = pad([row.ids for row in rows], fill=self.model.config.pad_token_id or 0)
        given = {"input_ids": ids.to(device), "attention_mask": mask.to(device).long()}
        places = torch.tensor([row.position for row in rows], device=device)
        row = torch.arange(len(rows), device=device)
        if self.head is not None:
            return self.head(self.model.base_model(**given)[0][row, places])
        found = self.model(**given).logits[row, places].float()
        return found if vocabulary else found[:, self._words]

    @torch.no_grad()
    def log_probs(self, examples: Sequence[Labelled]) -> Float[np.ndarray, "E C"]:
        """float32 log-probabilities of the classes."""
        rows = self.rows([example.text for example in examples])
        out = torch.empty(len(rows), len(self._words))
        with evaluating(self):
            lengths = [len(row.ids) for row in rows]
            for batch in length_sorted(lengths, budget=BATCH_TOKENS):
                out[batch] = self.logits([rows[i] for i in batch]).float().cpu()
        return out.log_softmax(-1).numpy()

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)

    def save(self, path: Path) -> None:
        save_tensors(path, {name: p.detach() for name, p in self.trained()})

    def load(self, path: Path) -> "FineTuned":
        """With trained weights in the place of its own, in eval mode.

        Raises:
            ArtifactError: They are another model's.
        """
        own = dict(self.named_parameters())
        with torch.no_grad():
            for name, value in load_tensors(path).items():
                if name not in own or own[name].shape != value.shape:
                    raise ArtifactError(f"{path}: {name} is of another model than the classifier")
                own[name].copy_(value)
        return self.eval().requires_grad_(False)


def _head(width: int, classes: int, config: Any, seed: int) -> nn.Sequential:
    """As RoBERTa's classification head: weights drawn with the model's own spread, biases 0."""
    with seeded(seed):
        found = nn.Sequential(
            nn.Dropout(HEAD_DROPOUT),
            nn.Linear(width, width),
            nn.Tanh(),
            nn.Dropout(HEAD_DROPOUT),
            nn.Linear(width, classes),
        )
        for layer in found:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=getattr(config, "initializer_range", 0.02))
                nn.init.zeros_(layer.bias)
    return found


def _train_top(model: Any, layers: int) -> None:
    """Freeze all but the top layers of the longest stack, or all of it where it has fewer."""
    stacks = [part for part in model.base_model.modules() if isinstance(part, nn.ModuleList)]
    blocks = list(max(stacks, key=len, default=[]))
    model.requires_grad_(False)
    for block in blocks[max(len(blocks) - layers, 0) :]:
        block.requires_grad_(True)
