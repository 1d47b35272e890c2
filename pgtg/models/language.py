"""One view of any language model that Transformers loads, encoder–decoder or causal.

Both kinds are read in two passes: `prefill` reads each of B sources once and leaves a key–value
cache; `extend` reads N token sequences, each continuing one source, on rows of that cache.
Sampling, token rewards and policy losses all use these two, so each source is encoded once however
many sequences continue it, and all of them attend to that one encoding (`models.sharing`). There is
one convention for where a token's reward stands:

    outputs 0..T of a row of T tokens: output t has read tokens 1..t (and the source), so
    output t-1 is the state *before* token t, output t the state *after* it.

The decoder start token of an encoder–decoder is always fed and never scored (METHOD deviation 2).
Sharing one encoding among K generations also shares its dropout mask; with dropout off (always,
except while that very model is trained) it is exact.
Left out: gradient checkpointing, which Transformers does not combine with a cache.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from pgtg.models.linear import with_fast_linears
from pgtg.models.sharing import Layout, sharing
from pgtg.ops.masking import move_padding
from pgtg.types import TokenBatch


@dataclass(frozen=True)
class Sources:
    """What the encoder made of B sources, and which of them each of N rows continues."""

    encoded: Float[Tensor, "B S D"]
    mask: Bool[Tensor, "B S"]
    origin: Int[Tensor, " N"]
    layout: Layout | None  # of rows that share a source; None: row n has source n to itself

    def select(self, rows: Int[Tensor, " M"], cache: Any) -> "Sources":
        """The sources of the rows named; the cache of their keys and values changes too."""
        origin = self.origin[rows]
        used, shared = origin.unique(return_inverse=True)
        layout = self.layout and Layout.of(shared, len(used))
        if layout is None:  # too uneven, or not possible with this model
            used, shared = origin, torch.arange(len(origin), device=origin.device)
        encoded, mask = self.encoded, self.mask
        if not torch.equal(used, torch.arange(len(encoded), device=used.device)):
            cache.batch_select_indices(used)
            encoded, mask = encoded[used], mask[used]
        return Sources(encoded, mask, shared, layout)


@dataclass
class Reading:
    """What a model remembers of N rows: changed in place by `extend`, narrowed by `select`."""

    output: Float[Tensor, "N 1 D"]  # states or logits after the last token read
    cache: Any  # Transformers' key-value cache
    mask: Bool[Tensor, "N L"] | None  # causal: real tokens read so far
    sources: Sources | None  # encoder-decoder only

    def select(self, rows: Int[Tensor, " M"]) -> "Reading":
        """The rows named, in that order; a row may come several times. The cache is changed."""
        if self.sources is None:
            self.cache.batch_select_indices(rows)
            mask = None if self.mask is None else self.mask[rows]
            return Reading(self.output[rows], self.cache, mask, None)
        self.cache.self_attention_cache.batch_select_indices(rows)
        sources = self.sources.select(rows, self.cache.cross_attention_cache)
        return Reading(self.output[rows], self.cache, None, sources)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode inside (no dropout), and in the mode it had after."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


class LanguageModel(nn.Module):
    """A Transformers model with one way to read sources and continuations.

    Args:
        model: An encoder-decoder with a language-model head, or a causal LM.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = with_fast_linears(model)
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder)
        decoder = model.get_decoder()
        self._takes_positions = "position_ids" in inspect.signature(decoder.forward).parameters
        self._sharing = sharing(decoder) if self.is_encoder_decoder else None

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def width(self) -> int:
        """Size of a state."""
        config = self.model.config.get_text_config()
        return int(getattr(config, "hidden_size", None) or config.d_model)

    @property
    def start_id(self) -> int:
        """The token an encoder-decoder's decoder starts with."""
        for config in (self.model.generation_config, self.model.config):
            value = getattr(config, "decoder_start_token_id", None)
            if value is not None:
                return int(value)
        raise ValueError(f"{type(self.model).__name__} has no decoder_start_token_id in its config")

    def states(self, batch: TokenBatch) -> Float[Tensor, "N T+1 D"]:
        """Last hidden states before the first token (column 0) and after each of the T tokens.

        The tokens must be right-padded (`models.batch.right_padded`); sources may be either.
        """
        return self._read(batch, batch.tokens, batch.mask, logits=False)

    def logits(self, batch: TokenBatch) -> Float[Tensor, "N T V"]:
        """Logits from which each of the T right-padded tokens was, or would be, drawn."""
        return self._read(batch, batch.tokens[:, :-1], batch.mask[:, :-1], logits=True)

    def _read(self, batch: TokenBatch, tokens: Tensor, mask: Tensor, *, logits: bool) -> Tensor:
        reading = self.prefill(batch.source, batch.source_mask, logits=logits)
        reading = reading.select(batch.origin)
        if tokens.shape[1] == 0:
            return reading.output
        return torch.cat([reading.output, self.extend(reading, tokens, mask, logits=logits)], dim=1)

    def prefill(
        self, source: Int[Tensor, "B S"], mask: Bool[Tensor, "B S"], *, logits: bool
    ) -> Reading:
        """Read each source once. `output` is the state (or logits) before the first token."""
        if self.is_encoder_decoder:
            source, mask = move_padding(source, mask, side="right")
            encoded = self.model.get_encoder()(source, attention_mask=mask.long())[0]
            start = torch.full((len(source), 1), self.start_id, device=source.device)
            own = torch.arange(len(source), device=source.device)
            layout = Layout.of(own, len(source)) if self._sharing else None
            sources = Sources(encoded, mask, own, layout)
            output, cache = self._decode(start, None, sources, logits)
            return Reading(output, cache, None, sources)
        source, mask = move_padding(source, mask, side="left")
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        keep = {"logits_to_keep": 1} if logits else {}
        output, cache = self._continue(source, None, mask, positions, logits, **keep)
        return Reading(output[:, -1:], cache, mask, None)

    def extend(
        self,
        reading: Reading,
        tokens: Int[Tensor, "N T"],
        mask: Bool[Tensor, "N T"],
        *,
        logits: bool,
    ) -> Float[Tensor, "N T D"]:
        """Read T more tokens on each row (right-padded); `reading` then includes them."""
        if reading.sources is not None:
            output, reading.cache = self._decode(tokens, reading.cache, reading.sources, logits)
        else:
            assert reading.mask is not None
            before = reading.mask.sum(-1, keepdim=True)
            positions = (before + mask.cumsum(-1) - 1).clamp(min=0)
            reading.mask = torch.cat([reading.mask, mask], dim=1)
            output, reading.cache = self._continue(
                tokens, reading.cache, reading.mask, positions, logits
            )
        reading.output = output[:, -1:]
        return output

    def _decode(self, tokens: Tensor, cache: Any, sources: Sources, logits: bool):
        """One pass of an encoder-decoder's decoder; later tokens never reach earlier ones, so the
        right-padded tokens need no mask of their own."""
        with nullcontext() if self._sharing is None else self._sharing.laid_out(sources.layout):
            if logits:
                out = self.model(
                    encoder_outputs=BaseModelOutput(last_hidden_state=sources.encoded),  # type: ignore[arg-type]
                    attention_mask=sources.mask.long(),
                    decoder_input_ids=tokens,
                    past_key_values=cache,
                    use_cache=True,
                )
                return out.logits, out.past_key_values
            out = self.model.get_decoder()(
                input_ids=tokens,
                encoder_hidden_states=sources.encoded,
                encoder_attention_mask=sources.mask.long(),
                past_key_values=cache,
                use_cache=True,
            )
            return out.last_hidden_state, out.past_key_values

    def _continue(
        self, tokens: Tensor, cache: Any, mask: Tensor, positions: Tensor, logits: bool, **keep: int
    ):
        """One pass of a causal LM."""
        module = self.model if logits else self.model.get_decoder()
        if self._takes_positions:
            keep = keep | {"position_ids": positions}  # type: ignore[dict-item]
        out = module(
            input_ids=tokens,
            attention_mask=mask.long(),
            past_key_values=cache,
            use_cache=True,
            **keep,
        )
        return (out.logits if logits else out.last_hidden_state), out.past_key_values
