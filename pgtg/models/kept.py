"""What a frozen language model makes of texts, read once and kept: under a head, in its place.

Where the head of a reward model alone is trained, every update would read the same states again.
Kept, they cost a look-up. States are kept in bfloat16; nothing else is rounded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pgtg.errors import ConfigError
from pgtg.models.batch import token_batch
from pgtg.models.language import LanguageModel
from pgtg.models.reward import HeadSpec, RewardModel, build_reward_model
from pgtg.ops.masking import length_sorted
from pgtg.types import TokenBatch, TokenIds

LOGITS = 2**26  # logits that are held in memory at a time


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
) -> KeptTexts:
    """States, log-probabilities and entropies of N texts that continue sources.

    Each source is read once, with all of its texts.
    """
    continuing: list[list[int]] = [[] for _ in sources]
    for row, source in enumerate(origin):
        continuing[source].append(row)
    used = [source for source, rows in enumerate(continuing) if rows]
    widths = [len(rows) * max(len(tokens[row]) for row in rows) for rows in continuing if rows]
    table: Any = lm.model.get_output_embeddings()
    vocabulary = int(table.weight.shape[0])
    found: list[tuple[Tensor, Tensor, Tensor]] = [()] * len(tokens)  # type: ignore[list-item]
    for places in length_sorted(widths, budget=LOGITS // vocabulary):
        rows = [row for place in places for row in continuing[used[place]]]
        local = [n for n, place in enumerate(places) for _ in continuing[used[place]]]
        own = [tokens[row] for row in rows]
        batch = token_batch([sources[used[place]] for place in places], own, local, device)
        states, logits = lm.read(batch)
        log_p = logits.float().log_softmax(-1)
        log_probs = log_p.gather(-1, batch.tokens[..., None]).squeeze(-1).cpu()
        entropies = -(log_p.exp() * log_p).sum(-1).cpu()
        states = states.bfloat16().cpu()
        for n, row in enumerate(rows):
            length = len(tokens[row])
            # copies: a view would keep the whole batch in memory
            parts = states[n, : length + 1], log_probs[n, :length], entropies[n, :length]
            found[row] = tuple(part.clone() for part in parts)  # type: ignore[assignment]
    states, log_probs, entropies = (torch.cat(column) for column in zip(*found, strict=True))
    lengths = torch.tensor([len(ids) for ids in tokens])
    return KeptTexts(states, log_probs, entropies, lengths)


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
        numbers, steps = self._numbers(batch), torch.arange(batch.tokens.shape[1])
        steps = steps.minimum((self.texts.lengths[numbers, None] - 1).clamp(min=0))
        return self.texts.log_probs[self._first[numbers, None] + steps].to(self.device)

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

    def _numbers(self, batch: TokenBatch) -> Int[Tensor, " N"]:
        return batch.source.cpu()[batch.origin.cpu(), 0]


def head_on(kept: KeptModel, spec: HeadSpec, seed: int) -> RewardModel:
    """A fresh head on kept texts, with the weights that it has on the model itself."""
    return build_reward_model(cast(LanguageModel, kept), spec, seed)
