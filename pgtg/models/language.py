"""One view of any language model that Transformers loads, encoder–decoder or causal.

Both kinds are read in two passes: `prefill` reads each of B sources once and leaves a key–value
cache; `extend` reads N token sequences, each continuing one source, on rows of that cache. So each
source is encoded once however many sequences continue it, and all of them attend to that one
encoding (`models.sharing`). Where an encoder–decoder's sequences are known beforehand, as in
training and scoring, its decoder reads them in one pass without a cache. There is one convention
for where a token's reward stands:

    outputs 0..T of a row of T tokens: output t has read tokens 1..t (and the source), so
    output t-1 is the state *before* token t, output t the state *after* it.

The decoder start token of an encoder–decoder is always fed and never scored:
docs/method.md, "Corrections to the reference", 2.
Sharing one encoding among K generations also shares its dropout mask; with dropout off (always,
except while that very model is trained) it is exact.
A model without a cache of keys and values (`models.structure`: recurrent and hybrid ones, XLNet,
OpenAI-GPT) is read without any: each pass reads rows whole, right-padded, so that no padding comes
before a token. That is as exact, and slower the longer the texts are.
Gradient checkpointing repeats a layer in the backward pass, which a cache would notice; with it a
training reads source and continuation in one pass without a cache. So it does where weights are
divided among processes (`models.sharding`): each micro-batch then makes the same passes.
Where a model's lower layers are frozen, what is read again and again (`TokenBatch.recurring`) is
read in one pass without a cache as well, which begins above them (`models.frozen`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from pgtg.errors import ConfigError
from pgtg.models import masks
from pgtg.models.backends import compiled
from pgtg.models.backends.attention import NAME
from pgtg.models.backends.checkpointing import checkpointable_layers, checkpointed
from pgtg.models.backends.chosen import chosen_log_prob
from pgtg.models.backends.dropout import OwnDropout
from pgtg.models.backends.layers import with_fast_layers
from pgtg.models.backends.sharding import is_sharded, whole
from pgtg.models.batch import token_batch
from pgtg.models.cache import fixed_length, lay_in_columns
from pgtg.models.frozen import FrozenLayers, KeptStates, layer_list, placed
from pgtg.models.reading import Reading, Sources
from pgtg.models.sharing import Layout, sharing
from pgtg.models.special_tokens import end_tokens
from pgtg.models.structure import (
    ODD,
    Outputs,
    arguments,
    build_of,
    layers_of,
    own_logits,
    scaled_head,
    structure,
)
from pgtg.ops.masking import move_padding
from pgtg.ops.sampling import entropy, log_probability
from pgtg.types import TokenBatch, TokenIds


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode (no dropout) and with whole weights inside, as it was after."""
    training = model.training
    model.eval()
    try:
        with whole(model):
            yield
    finally:
        model.train(training)


@contextmanager
def reading_passes(model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Passes without gradients inside, of a model that is still being trained: `evaluating`, and
    products in `dtype` while the weights stay as they are (autocast).

    Args:
        dtype: None: as the weights are; so are weights read that are not float32.
    """
    weights = next(model.parameters())
    narrow = dtype is not None and weights.dtype == torch.float32
    products = torch.autocast(weights.device.type, dtype) if narrow else nullcontext()
    with evaluating(model), torch.no_grad(), products:
        yield


STATES = "last_hidden_state"
PROBE = [[1, 3, 2, 1], [2, 1]], [[3, 1], [1, 2], [2]]  # ids of two sources, and of what continues
SHARED = PROBE[0], [*PROBE[1], [1], [3, 1, 2]]
_proved: dict[tuple[type, str], bool] = {}
_proved_compiled: set[tuple[type, str, str, torch.dtype]] = set()
# of frozen layers: whether states go in tuples, and whether rows can share a source; or None
_proved_frozen: dict[tuple[type, str, int], tuple[bool, bool] | None] = {}
MOST_APART = 2  # rows of a source that each read it again above kept states; more cost too much
CPU_SLICE = 1024  # source tokens that a CPU encodes at a time
AUTOCAST = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def training_passes(
    model: nn.Module, *, precision: str = "no", checkpointing: bool = False
) -> Iterator[None]:
    """How the language models in `model` make the passes that have gradients, inside.

    Args:
        precision: "bf16" or "fp16": products in that type (autocast); "no": as the weights are.
        checkpointing: Compute each layer again in the backward pass, to save memory.

    Raises:
        ConfigError: A model has no layers that can be computed again.
    """
    models = [part for part in model.modules() if isinstance(part, LanguageModel)]
    for lm in models if checkpointing else ():
        checkpointable_layers(lm.model)
    for lm in models:
        lm.autocast, lm.checkpointing = AUTOCAST[precision], checkpointing
    try:
        yield
    finally:
        for lm in models:
            lm.autocast, lm.checkpointing = None, False


class LanguageModel(nn.Module):
    """A Transformers model with one way to read sources and continuations.

    Args:
        model: An encoder-decoder with a language-model head, or a causal LM.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = with_fast_layers(model)
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder)
        self.structure = structure(model)
        layers = layers_of(model)
        self._model_takes, self._layers_take = arguments(model), arguments(layers)
        self._sharing = sharing(layers) if self.is_encoder_decoder else None
        self._masks = masks.ReadyMasks.of(model, layers)
        self.autocast: torch.dtype | None = None  # these two: see `training_passes`
        self.checkpointing = False
        self.frozen: FrozenLayers | None = None  # see `keep_frozen`
        with evaluating(model):
            self._head = scaled_head(model, self.width)
        if not self._proven():
            self._sharing, self._masks = None, masks.NONE_READY

    @torch.no_grad()
    def _proven(self) -> bool:
        """Whether shared sources and ready masks give what Transformers' own passes give.

        Both go by how Transformers names arguments and makes masks, which it may change. Two padded
        sources and three continuations decide, once for all models of one class and config.
        """
        if self._sharing is None and self._masks == masks.NONE_READY:
            return True
        key = build_of(self.model)
        if key not in _proved:
            ready, training = (self._sharing, self._masks), self.model.training
            batch = token_batch(*PROBE, [0, 1, 1], self.device)
            self.model.eval()
            try:
                found = self.states(batch)
                self._sharing, self._masks = None, masks.NONE_READY
                _proved[key] = _alike(found, self.states(batch), batch.mask)
            except ConfigError:  # no token to start with: said where a text is read
                return False
            except ODD:
                _proved[key] = False
            finally:
                self._sharing, self._masks = ready
                self.model.train(training)
        return _proved[key]

    @torch.no_grad()
    def require_compiled(self) -> None:
        """Compile the step of a token, and hold it against the model's own.

        Raises:
            ConfigError: It cannot be compiled here, or then gives something else.
        """
        key = (*build_of(self.model), str(self.device), next(self.parameters()).dtype)
        if key in _proved_compiled:
            return
        name = type(self.model).__name__
        if is_sharded(self):
            raise ConfigError("sample.compile: not where weights are divided among processes")
        batch = token_batch(*PROBE, [0, 1, 1], self.device)
        with evaluating(self):
            expected = self._two_steps(batch, compiled=False)
            try:
                found = self._two_steps(batch, compiled=True)
            except ConfigError:
                raise
            except Exception as error:  # torch.compile's and its compilers' are of many kinds
                said = str(error).strip().partition("\n")[0]
                raise ConfigError(
                    f"sample.compile: torch.compile cannot compile {name} here "
                    f"({type(error).__name__}: {said}); sample.compile=false goes without"
                ) from error
        if not _alike(found, expected, torch.ones_like(batch.mask[:, :1])):
            raise ConfigError(
                f"sample.compile: compiled, {name} gives other logits; "
                "sample.compile=false goes without"
            )
        _proved_compiled.add(key)

    def _two_steps(self, batch: TokenBatch, *, compiled: bool) -> Float[Tensor, "N 2 V"]:
        """Logits after the first two tokens of each sequence, read one by one."""
        reading = self.prefill(batch.source, batch.source_mask, logits=True)
        reading = reading.select(list(batch.rows()))
        if compiled:
            reading.fix(2)
        steps = [(batch.tokens[:, t, None], batch.mask[:, t, None]) for t in (0, 1)]
        return torch.cat([self.extend(reading, *step, logits=True) for step in steps], dim=1)

    def keep_frozen(self, top: int, kept: KeptStates) -> bool:
        """From now on, of recurring texts, keep what the layers below the `top` ones make of them.

        For models whose weights below are not trained: else these would get no gradients, and
        passes that ask for them are made as before. So are passes in another type (autocast), of
        divided weights, and with gradient checkpointing.

        Returns:
            Whether it does: only on a CPU, where a text alone is read as fast as among others; not
            for an encoder-decoder, where nothing is below, or where passes that begin in the middle
            of this model do not give what its whole passes give.
        """
        if self.device.type != "cpu" or self.is_encoder_decoder or not self.structure.caches:
            return False
        if not 0 < top < len(layer_list(self.model)):
            return False
        key = (*build_of(self.model), top)
        if key not in _proved_frozen:
            _proved_frozen[key] = self._prove_frozen(top)
        proved = _proved_frozen[key]
        if proved is not None:
            tuples, shared = proved
            self.frozen = FrozenLayers(self.model, top, kept, tuples=tuples, shared=shared)
        return proved is not None

    @torch.no_grad()
    def _prove_frozen(self, top: int) -> tuple[bool, bool] | None:
        """Whether the model takes its layers' states out of tuples, and whether rows can share a
        source above kept states; None if passes that begin there give something else."""
        apart = token_batch(*PROBE, [0, 1, 1], self.device, recurring=True)
        together = token_batch(*SHARED, [0, 1, 1, 0, 0], self.device, recurring=True)

        def gives(batch: TokenBatch, *, tuples: bool, shared: bool) -> bool:
            self.frozen = None
            with suppress(*ODD):
                expected, kept = self.states(batch), KeptStates(0)
                self.frozen = FrozenLayers(self.model, top, kept, tuples=tuples, shared=shared)
                assert self._beginning_above(batch) is not None
                return _alike(self.states(batch), expected, batch.mask)
            return False

        training = self.model.training
        self.model.eval()
        try:
            for tuples in (False, True):
                if gives(apart, tuples=tuples, shared=False):
                    return tuples, gives(together, tuples=tuples, shared=True)
            return None
        finally:
            self.frozen = None
            self.model.train(training)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def width(self) -> int:
        """Size of a state."""
        return self.structure.width

    @property
    def reads_sources_once(self) -> bool:
        """Whether rows that continue one source attend to one copy of its keys and values."""
        return self._sharing is not None

    @property
    def start_id(self) -> int:
        """The token an encoder-decoder's decoder starts with.

        Raises:
            ConfigError: The model's configs name none.
        """
        for config in (self.model.generation_config, self.model.config):
            value = getattr(config, "decoder_start_token_id", None)
            if value is not None:
                return int(value)
        raise ConfigError(
            f"a {type(self.model).__name__} without decoder_start_token_id: set it in its "
            "config.json (T5: the id of <pad>; mBART: of the target language)"
        )

    @property
    def end_ids(self) -> TokenIds:
        """The tokens that end a text, as the model's configs name them; perhaps none."""
        return end_tokens(self.model.generation_config, self.model.config)

    def states(self, batch: TokenBatch) -> Float[Tensor, "N T+1 D"]:
        """Last hidden states before the first token (column 0) and after each of the T tokens.

        The tokens must be right-padded (`models.batch.right_padded`); sources may be either.
        """
        return self._read(batch, batch.tokens, batch.mask, logits=False)

    def logits(self, batch: TokenBatch) -> Float[Tensor, "N T V"]:
        """Logits from which each of the T right-padded tokens was, or would be, drawn."""
        return self._read(batch, batch.tokens[:, :-1], batch.mask[:, :-1], logits=True)

    def log_probabilities(self, batch: TokenBatch) -> Float[Tensor, "N T"]:
        """log pi(a_t | s_t) of each of the T right-padded tokens, in float32."""
        head = self._scaled_head()
        if head is None:
            return log_probability(self.logits(batch).float(), batch.tokens)
        tokens, mask, (weight, factor) = batch.tokens, batch.mask, head
        states = self._read(batch, tokens[:, :-1], mask[:, :-1], logits=False)
        states = states[:, : tokens.shape[1]]
        states, dtype = states if factor == 1 else factor * states, self._products(weight)
        if self.device.type != "cpu":  # where to look for padding is to wait for the device
            found = chosen_log_prob(states.flatten(0, 1), weight, tokens.flatten(), dtype)
            return found.view(tokens.shape).float()
        found = chosen_log_prob(states[mask], weight, tokens[mask], dtype).float()
        return torch.zeros(tokens.shape).masked_scatter(mask, found)

    def _scaled_head(self) -> tuple[Tensor, float] | None:
        """Weights of the LM head and a factor, where logits are no more than their product with the
        states; None where they are, or where the weights are not to be had outside of a pass."""
        if self._head is None or is_sharded(self.model):
            return None
        head, factor = self._head
        changed = self.model.get_output_embeddings() is not head or "forward" in vars(head)
        return None if changed or head.bias is not None else (head.weight, factor)

    def _products(self, weight: Tensor) -> torch.dtype:
        """The type that products with these weights are taken in."""
        if self.autocast is not None and self.training and torch.is_grad_enabled():
            return self.autocast
        kind = self.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype

    def entropies(self, batch: TokenBatch) -> Float[Tensor, "N T"]:
        """Entropy [nats] of pi(. | s_t), which each of the T right-padded tokens was, or would be,
        drawn from, in float32."""
        return entropy(self.logits(batch).float())

    def embeddings(self, batch: TokenBatch) -> Float[Tensor, "N T D"]:
        """What the model's input table holds for each token."""
        return self.model.get_input_embeddings()(batch.tokens)

    def read(self, batch: TokenBatch) -> tuple[Float[Tensor, "N T+1 D"], Float[Tensor, "N T V"]]:
        """States and logits of the right-padded tokens, from one pass through the layers."""
        states = self.states(batch)
        passes = self.training and torch.is_grad_enabled() and self.autocast is not None
        with torch.autocast(self.device.type, self.autocast) if passes else nullcontext():
            return states, self.logits_of(states[:, :-1])

    def _read(self, batch: TokenBatch, tokens: Tensor, mask: Tensor, *, logits: bool) -> Tensor:
        gradients = self.training and torch.is_grad_enabled()
        device, dtype = self.device.type, self.autocast if gradients else None
        with nullcontext() if dtype is None else torch.autocast(device, dtype):
            if (frozen := self._beginning_above(batch)) is not None:
                if frozen.shared and len(batch.tokens) > len(batch.source):
                    return self._read_twice_above(frozen, batch, tokens, mask, logits)
                width = batch.source.shape[1] + tokens.shape[1]
                with frozen.giving(self._kept_states(frozen, batch, width)):
                    return self._read_at_once(batch, tokens, mask, logits)
            if not gradients:
                return self._read_simply(batch, tokens, mask, logits)
            if self.checkpointing:
                with checkpointed(self.model, self._contexts):
                    return self._read_at_once(batch, tokens, mask, logits)
            if is_sharded(self.model):
                return self._read_at_once(batch, tokens, mask, logits)
            with OwnDropout() if device == "cpu" and dtype is None else nullcontext():
                return self._read_simply(batch, tokens, mask, logits)

    def _beginning_above(self, batch: TokenBatch) -> FrozenLayers | None:
        """The frozen layers, if a batch is read from kept states: by what is read and how, never by
        what is kept."""
        frozen, grad = self.frozen, torch.is_grad_enabled()
        if frozen is None or not batch.recurring or self.device.type != "cpu":
            return None
        apart = not frozen.shared and len(batch.tokens) > MOST_APART * len(batch.source)
        if apart or not bool(batch.source_mask.any(-1).all()):
            return None
        if self.checkpointing or is_sharded(self.model):
            return None
        return None if grad and frozen.trained() else frozen

    @torch.no_grad()
    def _kept_states(
        self, frozen: FrozenLayers, batch: TokenBatch, width: int
    ) -> Float[Tensor, "N W D"]:
        """What the frozen layers make of each row, where `_read_at_once` has its tokens."""
        read = zip(batch.source, batch.source_mask, strict=True)
        sources = [ids[real].tolist() for ids, real in read]
        texts, starts = [], []
        for ids, real, source in zip(batch.tokens, batch.mask, batch.rows(), strict=True):
            texts.append(sources[source] + ids[real].tolist())
            starts.append(batch.source.shape[1] - len(sources[source]))
        with evaluating(self.model):
            return placed(frozen.states(texts, self._read_alone), starts, width)

    def _read_twice_above(
        self, frozen: FrozenLayers, batch: TokenBatch, tokens: Tensor, mask: Tensor, logits: bool
    ) -> Float[Tensor, "N T+1 D"]:
        """`_read_twice` from kept states: each source once, then the tokens on its cache, which
        holds the layers above alone."""
        source, source_mask = batch.source, batch.source_mask
        read = [ids[real].tolist() for ids, real in zip(source, source_mask, strict=True)]
        texts = [ids[real].tolist() for ids, real in zip(batch.tokens, batch.mask, strict=True)]
        rows = batch.rows()
        with torch.no_grad(), evaluating(self.model):
            whole, own = list[Tensor](), dict[int, Tensor]()
            for number, ids in enumerate(read):
                places = [row for row, of in enumerate(rows) if of == number and texts[row]]
                continued = [texts[row] for row in places]
                states, found = frozen.states_of_group(ids, continued, self._read_alone)
                whole.append(states)
                own |= zip(places, found, strict=True)
            starts = [source.shape[1] - len(ids) for ids in read]
            nothing = whole[0][:0]
            before = placed(whole, starts, source.shape[1])
            each = [own.get(row, nothing) for row in range(len(texts))]
            after = placed(each, [0] * len(each), tokens.shape[1])
        with frozen.giving(before):
            reading = self.prefill(source, source_mask, logits=logits)
        reading = reading.select(rows)
        if tokens.shape[1] == 0:
            return reading.output
        with frozen.giving(after):  # the output before the first token is the sources'
            return torch.cat(
                [reading.output, self.extend(reading, tokens, mask, logits=logits)], dim=1
            )

    def _read_alone(
        self, ids: TokenIds, cache: DynamicCache | None = None, before: int = 0
    ) -> None:
        """A pass over a text alone; `FrozenLayers` takes from it what it wants.

        Args:
            cache: What it continues, and is added to.
            before: Tokens that were read into the cache.
        """
        tokens = torch.tensor([ids])
        whole = torch.ones(1, before + len(ids), dtype=torch.bool)
        positions = torch.arange(before, before + len(ids))[None]
        self._continue(tokens, cache, whole, positions, False, cached=cache is not None)

    def _read_simply(
        self, batch: TokenBatch, tokens: Tensor, mask: Tensor, logits: bool
    ) -> Float[Tensor, "N T+1 D"]:
        once = self.is_encoder_decoder or not self.structure.caches
        return (self._read_at_once if once else self._read_twice)(batch, tokens, mask, logits)

    def _read_twice(
        self, batch: TokenBatch, tokens: Tensor, mask: Tensor, logits: bool
    ) -> Float[Tensor, "N T+1 D"]:
        """Each source once, then the tokens on its cache."""
        reading = self.prefill(batch.source, batch.source_mask, logits=logits)
        reading = reading.select(batch.rows())
        if tokens.shape[1] == 0:
            return reading.output
        return torch.cat([reading.output, self.extend(reading, tokens, mask, logits=logits)], dim=1)

    def _read_at_once(
        self, batch: TokenBatch, tokens: Tensor, mask: Tensor, logits: bool
    ) -> Float[Tensor, "N T+1 D"]:
        """The same without a cache: a causal LM reads the source of each row again."""
        rows = batch.origin
        if self.is_encoder_decoder:
            sources = self._encode(batch.source, batch.source_mask)
            sources = sources.select(batch.rows(), DynamicCache())
            tokens = torch.cat([tokens.new_full((len(tokens), 1), self.start_id), tokens], dim=1)
            return self._decode(tokens, None, sources, logits, cached=False)[0]
        source, source_mask = move_padding(batch.source, batch.source_mask, side="left")
        mask = torch.cat([source_mask[rows], mask], dim=1)
        last = tokens.shape[1] + 1
        tokens = torch.cat([source[rows], tokens], dim=1)
        if not self.structure.caches:
            return self._read_whole(tokens, mask, last, logits)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        keep: dict[str, Any] = {"logits_to_keep": last} if logits else {}
        output, _ = self._continue(tokens, None, mask, positions, logits, cached=False, **keep)
        return output[:, -last:]

    def _contexts(self):
        """Rows stand in the cross-attentions of a layer that is computed again as they did."""
        again = nullcontext() if self._sharing is None else self._sharing.laid_out_as_now()
        return nullcontext(), again

    def prefill(
        self, source: Int[Tensor, "B S"], mask: Bool[Tensor, "B S"], *, logits: bool
    ) -> Reading:
        """Read each source once. `output` is the state (or logits) before the first token."""
        caches = self.structure.caches
        if self.is_encoder_decoder:
            sources = self._encode(source, mask)
            start = torch.full((len(source), 1), self.start_id, device=source.device)
            output, cache = self._decode(start, None, sources, logits, cached=caches)
            history = None if caches else (start, torch.ones_like(start).bool())
            return Reading(output, cache, None, sources, history)
        source, mask = move_padding(source, mask, side="left")
        if not caches:
            output = self._read_whole(source, mask, 1, logits)
            return Reading(output, None, None, None, (source, mask))
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        keep: dict[str, Any] = {"logits_to_keep": 1} if logits else {}
        output, cache = self._continue(source, None, mask, positions, logits, **keep)
        return Reading(output[:, -1:], cache, mask, None)

    def lay_out_for_few_queries(self, reading: Reading) -> None:
        """Bring the sources' values into the order in which `few_queries` reads them best."""
        config: Any = self.model.config.get_text_config(decoder=True)
        if reading.sources is None or reading.cache is None or config._attn_implementation != NAME:
            return
        queries = reading.sources.width * config.num_attention_heads
        lay_in_columns(reading.cache.cross_attention_cache, queries)

    def _encode(self, source: Tensor, mask: Tensor) -> Sources:
        """What the encoder makes of each source, one row for each."""
        source, mask = move_padding(source, mask, side="right")
        encoder, given = self.model.get_encoder(), self._masks.encoder(mask)
        parts = [
            encoder(ids, attention_mask=None if given is None else given[rows])[0]
            for ids, rows in self._slices(source)
        ]
        encoded = parts[0] if len(parts) == 1 else torch.cat(parts)
        own = range(len(source))
        layout = Layout.of(own, len(source), source.device) if self._sharing else None
        return Sources(encoded, mask, self._masks.source(mask), tuple(own), layout)

    def _slices(self, source: Int[Tensor, "B S"]) -> Iterator[tuple[Tensor, slice]]:
        """Parts of the sources that are encoded one after another, and their rows.

        On the CPU and without gradients they are small: what a layer makes of them then stays in
        the processor's cache and in memory that is used again. Each row's numbers are the same.
        """
        size = len(source)
        if source.device.type == "cpu" and not (self.model.training or torch.is_grad_enabled()):
            size = max(1, CPU_SLICE // max(1, source.shape[1]))
        for start in range(0, len(source), size):
            rows = slice(start, start + size)
            yield source[rows], rows

    def extend(
        self,
        reading: Reading,
        tokens: Int[Tensor, "N T"],
        mask: Bool[Tensor, "N T"],
        *,
        logits: bool,
    ) -> Float[Tensor, "N T D"]:
        """Read T more tokens on each row (right-padded); `reading` then includes them."""
        if reading.history is not None:
            ids, real = reading.history
            reading.history = torch.cat([ids, tokens], dim=1), torch.cat([real, mask], dim=1)
            output = self._read_whole(*reading.history, tokens.shape[1], logits, reading.sources)
        elif reading.sources is not None:
            output, reading.cache = self._decode(tokens, reading.cache, reading.sources, logits)
        else:
            assert reading.mask is not None
            before = reading.mask.sum(-1, keepdim=True)
            positions = (before + mask.cumsum(-1) - 1).clamp(min=0)
            reading.add(mask)
            output, reading.cache = self._continue(
                tokens, reading.cache, reading.mask, positions, logits
            )
        reading.output = output[:, -1:]
        return output

    def _read_whole(
        self, ids: Tensor, mask: Tensor, last: int, logits: bool, sources: Sources | None = None
    ) -> Float[Tensor, "N L D"]:
        """Outputs at the last columns of rows, where their tokens stand, without a cache.

        Rows are right-padded for it: what comes after a token changes nothing, whereas recurrent
        layers would take in padding that comes before.
        """
        compact, real = move_padding(ids, mask, side="right")
        place = (mask.cumsum(-1) - 1).clamp(min=0)[:, -last:, None]
        if sources is not None:
            output, _ = self._decode(compact, None, sources, logits, cached=False)
            return output.gather(1, place.expand(-1, -1, output.shape[-1]))
        states, _ = self._continue(compact, None, real, None, False, cached=False)
        states = states.gather(1, place.expand(-1, -1, states.shape[-1]))
        return self.logits_of(states) if logits else states

    def logits_of(self, states: Float[Tensor, "N T D"]) -> Float[Tensor, "N T V"]:
        """Logits from states."""
        return own_logits(self.model, states)

    def _decode(
        self, tokens: Tensor, cache: Any, sources: Sources, logits: bool, *, cached: bool = True
    ):
        """One pass of an encoder-decoder's decoder; later tokens never reach earlier ones, so the
        right-padded tokens need no mask of their own."""
        given: dict[str, Any] = {"past_key_values": cache, "use_cache": cached}
        with nullcontext() if self._sharing is None else self._sharing.laid_out(sources.layout):
            if logits:
                given |= {"decoder_input_ids": tokens, "attention_mask": sources.seen}
                given["encoder_outputs"] = Outputs(last_hidden_state=sources.encoded)  # type: ignore[arg-type]
                given["decoder_attention_mask"] = self._masks.own(tokens, cache)
                return _call(self._after(cache), self._model_takes, given, "logits")
            given |= {"input_ids": tokens, "encoder_attention_mask": sources.seen}
            given["attention_mask"] = self._masks.own(tokens, cache)
            # EncoderDecoderModel fits states of the encoder's size to the decoder here
            fit = getattr(self.model, "enc_to_dec_proj", nn.Identity())
            given["encoder_hidden_states"] = fit(sources.encoded)
            return _call(layers_of(self.model), self._layers_take, given, STATES)

    def _continue(
        self,
        tokens: Tensor,
        cache: Any,
        mask: Tensor,
        positions: Tensor | None,
        logits: bool,
        *,
        cached: bool = True,
        **keep: Any,
    ):
        """One pass of a causal LM; positions None: those that the model counts itself."""
        given: dict[str, Any] = {"past_key_values": cache, "use_cache": cached} | keep
        given |= {"input_ids": tokens, "position_ids": positions}
        given["attention_mask"] = self._masks.causal(mask, tokens.shape[1])
        if logits:
            return _call(self._after(cache), self._model_takes, given, "logits")
        return _call(layers_of(self.model), self._layers_take, given, STATES)

    def _after(self, cache: Any) -> Callable[..., Any]:
        """What reads a token after those of a cache: compiled, where that has a fixed length."""
        fixed = fixed_length(cache) is not None
        return partial(compiled.forward, self.model) if fixed else self.model


def _alike(
    found: Float[Tensor, "N T+1 D"], expected: Float[Tensor, "N T+1 D"], mask: Bool[Tensor, "N T"]
) -> bool:
    """Whether states are the same but for rounding, where there are tokens."""
    apart = (found - expected).abs().amax(-1)
    apart = torch.cat([apart[:, :1], apart[:, 1:].where(mask, 0.0)], dim=1)
    bound = 1e-3 if found.dtype in (torch.float32, torch.float64) else 5e-2
    return apart.max().item() <= bound * expected.abs().max().item()


def _call(
    module: Callable[..., Any], takes: frozenset[str], given: dict[str, Any], name: str
) -> tuple[Tensor, Any]:
    """What a pass gives under a name, and its cache; it gets the arguments that it takes."""
    out = module(**{key: value for key, value in given.items() if key in takes})
    return getattr(out, name), getattr(out, "past_key_values", None)
