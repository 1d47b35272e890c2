"""What a frozen language model makes of texts, read once and kept: under a head, in its place.

Where the head of a reward model alone is trained, every update would read the same states again.
Kept, they cost a look-up. States are kept in bfloat16; nothing else is rounded.
"""

from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from threading import Event
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pgtg.errors import ConfigError
from pgtg.models.language import LanguageModel
from pgtg.models.reward import HeadSpec, RewardModel
from pgtg.ops.masking import length_sorted, pad
from pgtg.ops.sampling import seeded
from pgtg.types import TokenBatch, TokenIds

PLACES = 1024  # tokens, padding included, that are read in one pass
CACHED = 16  # tokens whose logits stay in a processor's cache


@dataclass(frozen=True)
class KeptTexts:
    """N texts one after another: the states of a text with T tokens are its T + 1.

    Args:
        states: Before the first token and after each.
        log_probs: log pi(a_t | s_t) [nats].
        entropies: Of pi(. | s_t), from which each token was, or would be, drawn [nats].
        lengths: Tokens of each text.
    """

    states: Float[Tensor, "P D"]
    log_probs: Float[Tensor, " R"]
    entropies: Float[Tensor, " R"]
    lengths: Int[Tensor, " N"]

    @classmethod
    def joined(cls, parts: Sequence["KeptTexts"]) -> "KeptTexts":
        """The texts of several parts, in their order."""
        names = ("states", "log_probs", "entropies", "lengths")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def by_text(self, values: Float[Tensor, " R"]) -> list[Float[Tensor, " T"]]:
        """A value of all tokens, text by text."""
        return list(values.split(self.lengths.tolist()))


@torch.no_grad()
def read_texts(
    lm: LanguageModel,
    sources: Sequence[TokenIds],
    tokens: Sequence[TokenIds],
    origin: Sequence[int],
    *,
    device: torch.device | str = "cpu",
    over: Event | None = None,
) -> KeptTexts:
    """States, log-probabilities and entropies of N texts that continue sources.

    Each source is read once, and its texts continue it in batches of texts of similar length.

    Args:
        over: Nobody waits for them any more: no further pass is made.

    Raises:
        CancelledError: So it is.
    """
    found: list[tuple[Tensor, Tensor, Tensor]] = [()] * len(tokens)  # type: ignore[list-item]
    continued = sorted(set(origin))
    lengths = [len(sources[source]) for source in continued]
    for some in length_sorted(lengths, budget=PLACES):
        here = {continued[n]: place for place, n in enumerate(some)}
        source, mask = pad([sources[own] for own in here])
        reading = lm.prefill(source.to(device), mask.to(device), logits=False)
        rows = [row for row, own in enumerate(origin) if own in here]
        for part in length_sorted([len(tokens[row]) for row in rows], budget=PLACES):
            if over is not None and over.is_set():
                raise CancelledError
            texts = [rows[n] for n in part]
            own = reading.fork().select([here[origin[row]] for row in texts])
            ids, mask = (one.to(device) for one in pad([tokens[row] for row in texts]))
            states = torch.cat([own.output, lm.extend(own, ids, mask, logits=False)], dim=1)
            for row, text, of_text in zip(texts, ids, states, strict=True):
                length = len(tokens[row])
                log_probs, entropies = _of_logits(lm, of_text[:length], text[:length])
                found[row] = of_text[: length + 1].bfloat16().cpu(), log_probs, entropies
    states, log_probs, entropies = (torch.cat(column) for column in zip(*found, strict=True))
    return KeptTexts(states, log_probs, entropies, torch.tensor([len(ids) for ids in tokens]))


def _of_logits(
    lm: LanguageModel, states: Float[Tensor, "T D"], ids: Int[Tensor, " T"]
) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
    """Log-probability of each token after its state, and entropy there, of logits that are held
    for this text alone."""
    logits, found = lm.logits_of(states[None])[0].float(), list[tuple[Tensor, Tensor]]()
    for some, own in zip(logits.split(CACHED), ids.split(CACHED), strict=True):
        some = some - some.amax(-1, keepdim=True)
        weights = some.exp()
        total = weights.sum(-1)
        # log Z - sum_v p_v z_v, as a product that makes no array of its terms
        mean = torch.bmm(weights[:, None], some[:, :, None]).flatten() / total
        log_prob = some.gather(-1, own[:, None]).squeeze(-1) - total.log()
        found.append((log_prob, total.log() - mean))
    log_probs, entropies = (torch.cat(column).cpu() for column in zip(*found, strict=True))
    return log_probs, entropies


class KeptModel(nn.Module):
    """Kept texts in the place of the language model that read them.

    A batch of it names its texts: what stands for the source of a text is its number, as one "id".

    Args:
        texts: Stay where they are.
        embedding: The model's table of input embeddings.
        device: Where batches are, and what is looked up goes.
    """

    def __init__(self, texts: KeptTexts, embedding: nn.Module, device: torch.device | str):
        super().__init__()
        self.texts, self.device = texts, torch.device(device)
        self.width = texts.states.shape[-1]
        self.embedding = embedding.requires_grad_(False)
        self._first = texts.lengths.cumsum(0) - texts.lengths  # token of each text

    def states(self, batch: TokenBatch) -> Float[Tensor, "N T+1 D"]:
        """As `LanguageModel.states`."""
        numbers, steps = self._numbers(batch), torch.arange(batch.tokens.shape[1] + 1)
        steps = steps.minimum(self.texts.lengths[numbers, None])
        found = self.texts.states[(self._first[numbers] + numbers)[:, None] + steps]
        return found.to(self.device)

    def log_probabilities(self, batch: TokenBatch) -> Float[Tensor, "N T"]:
        """As `LanguageModel.log_probabilities`."""
        return self._of_tokens(self.texts.log_probs, batch)

    def entropies(self, batch: TokenBatch) -> Float[Tensor, "N T"]:
        """As `LanguageModel.entropies`."""
        return self._of_tokens(self.texts.entropies, batch)

    def embeddings(self, batch: TokenBatch) -> Float[Tensor, "N T D"]:
        """As `LanguageModel.embeddings`."""
        return self.embedding(batch.tokens)

    def logits(self, batch: TokenBatch) -> Tensor:
        """Not kept.

        Raises:
            ConfigError: Always; says what to do.
        """
        raise ConfigError("reward.head: it reads logits, which are not kept: reward.trained=all")

    @property
    def model(self) -> Any:
        raise ConfigError("reward.head: it reads the model itself: reward.trained=all")

    def _of_tokens(self, values: Float[Tensor, " R"], batch: TokenBatch) -> Float[Tensor, "N T"]:
        numbers, steps = self._numbers(batch), torch.arange(batch.tokens.shape[1])
        steps = steps.minimum((self.texts.lengths[numbers, None] - 1).clamp(min=0))
        return values[self._first[numbers, None] + steps].to(self.device)

    def _numbers(self, batch: TokenBatch) -> Int[Tensor, " N"]:
        return batch.source.cpu()[batch.origin.cpu(), 0]


class KeptRewards(RewardModel):
    """A head on kept texts. It gets texts of similar length at a time: nothing is read, so what it
    would make of padding were most of its work."""

    def raw(self, batch: TokenBatch) -> Float[Tensor, "N T"]:
        """As `RewardModel.raw`; the texts are right-padded."""
        lengths, found = batch.mask.sum(-1).tolist(), torch.zeros_like(batch.tokens).float()
        for rows in length_sorted(lengths, budget=PLACES):
            some, width = torch.tensor(rows, device=found.device), lengths[rows[0]]
            tokens, mask = batch.tokens[some, :width], batch.mask[some, :width]
            part = replace(
                batch, tokens=tokens, mask=mask, origin=batch.origin[some], known_origin=None
            )
            steps = torch.arange(width, device=found.device)
            found = found.index_put((some[:, None], steps), self.head(self.backbone, part))
        return found


def head_on(kept: KeptModel, spec: HeadSpec, seed: int) -> RewardModel:
    """A fresh head on kept texts, with the weights that it has on the model itself, which is the
    start policy too."""
    lm = cast(LanguageModel, kept)
    with seeded(seed):
        return KeptRewards(lm, spec, start=lm if spec.by_entropy else None).to(kept.device)
