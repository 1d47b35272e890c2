"""Rows of token ids to logits of the label words, by a masked or a causal LM.

The LM head is applied to the one state that answers, and to the label words' rows only: of a large
vocabulary's head next to nothing is left.

A causal LM reads what stands before the prompt once per list of texts, for gradients to the prompt
as well, and keeps the key-value cache, up to `cache_bytes`; beyond that it is read again for each
prompt, to the same bits. Where the prompt stands before the sentence, all up to the sentence is
read once per prompt. A row whose ids do not begin with what was read (tokens may merge across the
border in string rendering, a sentence may be cut) is read plainly.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from pgtg.judges.rendering import Prompt, Rendered, Renderer, Slot
from pgtg.models.backends.layers import with_fast_layers
from pgtg.models.language import LanguageModel
from pgtg.models.reading import Reading
from pgtg.ops.masking import length_sorted, pad
from pgtg.runs.files import content_hash
from pgtg.types import Labelled

Head = Callable[[Float[Tensor, "N D"]], Float[Tensor, "N C"]]
Demos = Sequence[Sequence[Labelled]] | None
Answers = Iterator[tuple[list[int], Float[Tensor, "N C"]]]  # numbers of rows, and their logits


class Offset:
    """Vectors on top of the prompt's tokens, for as long as they are set.

    They are added to what the embedding layer makes of the tokens, or with `block` to the output of
    the embedding block (word, position and type, normalised), where a masked LM has one.
    """

    def __init__(self, model: PreTrainedModel):
        self._words: nn.Module = model.get_input_embeddings()
        self._block: nn.Module = getattr(model.base_model, "embeddings", self._words)
        self._vectors: Float[Tensor, "L D"] | None = None
        self._module = self._words

    @contextlib.contextmanager
    def added(self, vectors: Float[Tensor, "L D"], *, block: bool) -> Iterator[None]:
        self._vectors, self._module = vectors, self._block if block else self._words
        try:
            yield
        finally:
            self._vectors = None

    @contextlib.contextmanager
    def at(self, starts: Sequence[int]) -> Iterator[None]:
        """Around a pass over rows whose prompts begin at these places."""
        vectors = self._vectors
        if vectors is None:
            yield
            return
        places = torch.tensor(list(starts), device=vectors.device)
        if bool((places < 0).any()):
            raise ValueError("rows whose prompts have no place: render them in pieces")
        places = places[:, None] + torch.arange(len(vectors), device=vectors.device)

        def add(module: nn.Module, given: Any, output: Tensor) -> Tensor:
            here = places[..., None].expand(-1, -1, output.shape[-1])
            own = vectors.to(output.dtype).expand(len(places), -1, -1)
            return output.scatter_add(1, here, own)

        hook = self._module.register_forward_hook(add)
        try:
            yield
        finally:
            hook.remove()


class MaskedReader:
    """Reads each row as a whole and answers at its mask."""

    def __init__(self, model: PreTrainedModel, label_ids: Int[Tensor, " C"]):
        self._model, self._ids = with_fast_layers(model), label_ids
        self.offset = Offset(model)
        self._head = _proven(_label_head(model, label_ids), self._states, self._logits, label_ids)

    def read(self, rows: Sequence[Rendered]) -> Float[Tensor, "N C"]:
        ids, mask = pad([row.ids for row in rows], fill=self._model.config.pad_token_id or 0)
        ids, mask = ids.to(self._model.device), mask.to(self._model.device)
        position = torch.tensor([row.position for row in rows], device=ids.device)
        row = torch.arange(len(rows), device=ids.device)
        with self.offset.at([row.prompt for row in rows]):
            if self._head is None:
                return self._logits(ids, mask)[row, position][:, self._ids].float()
            return self._head(self._states(ids, mask)[row, position])

    def _states(self, ids: Tensor, mask: Tensor) -> Float[Tensor, "N L D"]:
        return self._model.base_model(input_ids=ids, attention_mask=mask.long())[0]

    def _logits(self, ids: Tensor, mask: Tensor) -> Float[Tensor, "N L V"]:
        return self._model(input_ids=ids, attention_mask=mask.long()).logits


class CausalReader:
    """Reads rows and answers after their last token.

    Args:
        cache_bytes: Key-value cache that is kept between prompts; what came first stays.

    `caches`: whether the model has one; without it only `read` is of use.
    """

    def __init__(self, model: PreTrainedModel, label_ids: Int[Tensor, " C"], cache_bytes: int):
        self._lm, self._ids = LanguageModel(model), label_ids
        self.caches = self._lm.structure.caches
        self.offset = Offset(model)
        self._head = _proven(
            _label_head(model, label_ids),
            lambda ids, mask: self._lm.prefill(ids, mask, logits=False).output,
            lambda ids, mask: self._lm.prefill(ids, mask, logits=True).output,
            label_ids,
        )
        self._cache_bytes = cache_bytes
        self._kept: dict[tuple[str, int], Reading] = {}
        self.kept_bytes = 0

    def read(self, rows: Sequence[Rendered]) -> Float[Tensor, "N C"]:
        # with a cache padding goes to the left
        longest = max(len(row.ids) for row in rows)
        before = [longest - len(row.ids) if self.caches else 0 for row in rows]
        with self.offset.at([row.prompt + n for row, n in zip(rows, before, strict=True)]):
            return self._answer(self._prefill([row.ids for row in rows]).output[:, 0])

    def read_after_texts(
        self,
        renderer: Renderer,
        texts: Sequence[str],
        demos: Demos,
        rows: Sequence[Rendered],
        budget: int,
    ) -> Answers:
        """Answers of the rows that begin with what stands before the prompt, which is kept."""
        shown = demos or [()] * len(texts)
        leads = [renderer.lead(Slot.PROMPT, None, *each) for each in zip(texts, shown, strict=True)]
        for tails in self._after(leads, rows, range(len(rows)), renderer.max_tokens, budget):
            yield tails.rows, self._answer(self._extend(tails))

    def words_after_texts(
        self,
        renderer: Renderer,
        texts: Sequence[str],
        rows: Sequence[Rendered],
        of: Sequence[int],
        vectors: Float[Tensor, "L D"],
        budget: int,
        *,
        block: bool,
    ) -> Answers:
        """Logits of all words, with gradients to vectors on top of the prompt: the texts do not see
        the prompt that follows, so their part is kept as it is.

        Args:
            of: For each row the number of its text.
        """
        leads = [renderer.lead(Slot.PROMPT, None, text, ()) for text in texts]
        with self.offset.added(vectors, block=block):
            for tails in self._after(leads, rows, of, renderer.max_tokens, budget):
                yield tails.rows, self._all_words(self._extend(tails))

    def _after(
        self,
        leads: list[list[int]],
        rows: Sequence[Rendered],
        of: Sequence[int],
        longest: int,
        budget: int,
    ) -> Iterator["Tails"]:
        """What follows in the rows that begin with their text's lead, batch by batch of leads."""
        usable = [i for i, lead in enumerate(leads) if 0 < len(lead) < longest]
        key = content_hash(leads)
        batches = length_sorted([len(leads[i]) for i in usable], budget=budget)
        # the batches do not depend on the prompt, so that what is kept fits the next one
        for number, batch in enumerate([[usable[i] for i in batch] for batch in batches]):
            place = {i: n for n, i in enumerate(batch)}
            hits = [r for r, i in enumerate(of) if i in place and _continues(rows[r], leads[i])]
            if not hits:
                continue
            hits.sort(key=lambda r: place[of[r]])
            reading = self._once((key, number), [leads[i] for i in batch])
            kept = [place[of[r]] for r in hits]
            if kept != [*range(len(batch))]:
                reading = reading.select(torch.tensor(kept, device=self._lm.device))
            after = [_after(rows[r], leads[of[r]]) for r in hits]
            # where the prompt begins in them: 0, if it is known
            yield Tails(hits, reading, after, [rows[r].prompt - len(leads[of[r]]) for r in hits])

    def read_after_prompt(
        self, renderer: Renderer, prompt: Prompt, rows: Sequence[Rendered], budget: int
    ) -> Answers:
        """Answers of the rows that begin with what stands before the sentence, read once."""
        lead = renderer.lead(Slot.SENTENCE, prompt, "")
        hits = [i for i, row in enumerate(rows) if lead and _continues(row, lead)]
        if not hits:
            return
        with self.offset.at([rows[hits[0]].prompt]):
            reading = self._prefill([lead])
        for batch in length_sorted([len(rows[i].ids) for i in hits], budget=budget):
            places = [hits[n] for n in batch]
            same = torch.zeros(len(places), dtype=torch.long, device=self._lm.device)
            own = _copied(reading).select(same)
            tails = Tails(places, own, [_after(rows[i], lead) for i in places], None)
            yield places, self._answer(self._extend(tails))

    def _once(self, key: tuple[str, int], leads: list[list[int]]) -> Reading:
        """The leads' reading, free to be changed: kept from before, or made and kept if it fits."""
        reading = self._kept.get(key)
        if reading is None:
            reading = self._prefill(leads)
            size = _cache_bytes(reading)
            if self.kept_bytes + size > self._cache_bytes:
                return reading
            self._kept[key], self.kept_bytes = reading, self.kept_bytes + size
        return _copied(reading)

    @torch.no_grad()
    def _prefill(self, rows: Sequence[list[int]]) -> Reading:
        ids, mask = (part.to(self._lm.device) for part in pad(rows, side="left"))
        return self._lm.prefill(ids, mask, logits=self._head is None)

    def _extend(self, tails: "Tails") -> Float[Tensor, "N D"]:
        """Of each row's last token its state, or logits where the head is not ours."""
        ids, mask = (part.to(self._lm.device) for part in pad(tails.ids))
        with contextlib.nullcontext() if tails.starts is None else self.offset.at(tails.starts):
            output = self._lm.extend(tails.reading, ids, mask, logits=self._head is None)
        last = mask.sum(-1) - 1
        return output[torch.arange(len(ids), device=ids.device), last]

    def _answer(self, output: Tensor) -> Float[Tensor, "N C"]:
        return output[:, self._ids].float() if self._head is None else self._head(output)

    def _all_words(self, output: Tensor) -> Float[Tensor, "N V"]:
        return output.float() if self._head is None else self._words(output)

    @cached_property
    def _words(self) -> Head:
        """As `_head`, which has been compared with the model's own, for all words."""
        model = self._lm.model
        size = model.config.get_text_config().vocab_size
        head = _label_head(model, torch.arange(size, device=model.device))
        assert head is not None
        return head


@dataclass(frozen=True)
class Tails:
    """The rest of some rows, and the reading of what stands before it.

    Args:
        rows: Their numbers.
        reading: Free to be changed.
        ids: The tokens that follow.
        starts: Where in them the prompt begins; None where it has been read.
    """

    rows: list[int]
    reading: Reading
    ids: list[list[int]]
    starts: list[int] | None


def _continues(row: Rendered, lead: list[int]) -> bool:
    return len(row.ids) > len(lead) and row.ids[: len(lead)] == lead


def _after(row: Rendered, lead: list[int]) -> list[int]:
    return row.ids[len(lead) :]


def _copied(reading: Reading) -> Reading:
    """A reading that may be extended and narrowed while the first one stays as it is."""
    cache = reading.cache
    if all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
        # these layers replace their tensors and never write into them, so tensors can be shared
        cache = copy.copy(cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        return replace(reading, cache=cache)
    return replace(reading, cache=copy.deepcopy(cache))


def _cache_bytes(reading: Reading) -> int:
    parts = [part for layer in reading.cache.layers for part in (layer.keys, layer.values)]
    return sum(part.numel() * part.element_size() for part in parts if part is not None)


class VocabularyReader:
    """Reads rows with gradients to vectors on top of the prompt, and answers with all words."""

    def __init__(self, model: PreTrainedModel):
        self._model, self._offset = model, Offset(model)
        words = torch.arange(model.config.get_text_config().vocab_size, device=model.device)
        some = words[-8:]
        head = _proven(_label_head(model, some), self._states, self._logits, some)
        self._head = None if head is None else _label_head(model, words)

    def read(
        self, rows: Sequence[Rendered], vectors: Float[Tensor, "L D"], *, block: bool = False
    ) -> Float[Tensor, "N V"]:
        """Logits at the place of the answer."""
        ids, mask = pad([row.ids for row in rows], fill=self._model.config.pad_token_id or 0)
        ids, mask = ids.to(self._model.device), mask.to(self._model.device)
        position = torch.tensor([row.position for row in rows], device=ids.device)
        row = torch.arange(len(rows), device=ids.device)
        starts = [row.prompt for row in rows]
        with self._offset.added(vectors, block=block), self._offset.at(starts):
            if self._head is None:
                return self._logits(ids, mask)[row, position].float()
            return self._head(self._states(ids, mask)[row, position])

    def _states(self, ids: Tensor, mask: Tensor) -> Float[Tensor, "N L D"]:
        return self._model.base_model(input_ids=ids, attention_mask=mask.long())[0]

    def _logits(self, ids: Tensor, mask: Tensor) -> Float[Tensor, "N L V"]:
        return self._model(input_ids=ids, attention_mask=mask.long()).logits


# --- the LM head, label words only


@dataclass(frozen=True)
class LabelHead:
    """Rows of an LM head: transform (masked LMs have one), then label words only, in float32."""

    transform: Callable[[Tensor], Tensor]
    weight: Float[Tensor, "C D"]
    bias: Float[Tensor, " C"] | None

    def __call__(self, states: Float[Tensor, "*N D"]) -> Float[Tensor, "*N C"]:
        return functional.linear(self.transform(states).float(), self.weight, self.bias)


def _label_head(model: PreTrainedModel, label_ids: Tensor) -> LabelHead | None:
    """The label words' part of the model's head; None for a head of an unsupported architecture."""
    last: Any = model.get_output_embeddings()
    if not isinstance(last, nn.Linear):
        return None
    weight = last.weight.detach()[label_ids].float()
    bias = None if last.bias is None else last.bias.detach()[label_ids].float()
    return LabelHead(_transform(model), weight, bias)


def _transform(model: Any) -> Callable[[Tensor], Tensor]:
    """What the head does before its last layer: BERT's `transform`, RoBERTa's dense and norm."""
    head: Any = getattr(model, "lm_head", None)
    if hasattr(head, "dense") and hasattr(head, "layer_norm"):
        return lambda states: head.layer_norm(functional.gelu(head.dense(states)))
    head = getattr(getattr(model, "cls", None), "predictions", None)
    if hasattr(head, "transform"):
        return head.transform
    return lambda states: states


@torch.no_grad()
def _proven(
    head: LabelHead | None,
    states: Callable[[Tensor, Tensor], Tensor],
    logits: Callable[[Tensor, Tensor], Tensor],
    label_ids: Tensor,
) -> Head | None:
    """The head if it gives the model's own logits on a short text; else None: use the full head.

    Other families have other transforms, or scale or bound their logits at the end; rather than
    know them all, one short comparison decides.
    """
    if head is None:
        return None
    ids = label_ids[None]
    full = logits(ids, torch.ones_like(ids, dtype=torch.bool))[..., label_ids]
    try:
        found = head(states(ids, torch.ones_like(ids, dtype=torch.bool)))
    except RuntimeError:  # the states are not what the last layer reads: ALBERT projects them first
        return None
    # the model rounds its own logits to its dtype: 8 bits of mantissa in bfloat16
    precise = full.dtype in (torch.float32, torch.float64)
    bound = (2e-5 if precise else 2e-2) * max(1.0, full.abs().max().item())
    return head if (found - full.float()).abs().max().item() <= bound else None
