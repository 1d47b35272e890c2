"""A frozen causal LM with a trained MLP before its LM head: the paper's policy of prompts.

The MLP's output replaces the last hidden state: logits_t = head(MLP(h_t)). Only the MLP is trained
and saved; the language model stays where it came from, and is recognised by its fingerprint.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pgtg.errors import ArtifactError, DivergedError
from pgtg.models.backends.layers import with_fast_layers
from pgtg.models.backends.rows import products_with_rows
from pgtg.models.generate import Decoding, drawable
from pgtg.models.language import LanguageModel, evaluating
from pgtg.models.structure import bare_head, own_logits
from pgtg.models.trust import load_module
from pgtg.ops.sampling import draw, seeded
from pgtg.runs.folder import read_json, save_tensors, write_json
from pgtg.runtime.distributed import first
from pgtg.types import TokenBatch, TokenIds

ADAPTOR_JSON, ADAPTOR_WEIGHTS = "adaptor.json", "adaptor.safetensors"


class AdaptedLanguageModel(LanguageModel):
    """A causal LM, frozen, that speaks through an MLP.

    Args:
        model: The causal LM.
        width: Size of the MLP's hidden layer.
        residual: Add the MLP's output to the state, so that training starts from what the language
            model itself would say; else it replaces the state (the paper).
        allowed: The only tokens that may be drawn; None for all.
    """

    def __init__(
        self,
        model: Any,
        width: int,
        *,
        residual: bool = False,
        allowed: Sequence[int] | None = None,
    ):
        super().__init__(model)
        self.residual = residual
        self._bare = bare_head(model, self.width) is not None
        self.model.requires_grad_(False)
        self.adaptor = nn.Sequential(
            nn.Linear(self.width, width), nn.ReLU(), nn.Linear(width, self.width)
        )
        for layer in (self.adaptor[0], self.adaptor[2]):
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_uniform_(layer.weight, gain=1e-4)
            nn.init.constant_(layer.bias, -1e-4)
        with_fast_layers(self.adaptor)
        self.forbidden: Tensor | None
        self.register_buffer("forbidden", None, persistent=False)
        if allowed is not None:
            forbidden = torch.ones(model.get_output_embeddings().weight.shape[0], dtype=torch.bool)
            forbidden[list(allowed)] = False
            self.forbidden = forbidden

    def _continue(
        self,
        tokens: Tensor,
        cache: Any,
        mask: Tensor,
        positions: Tensor | None,
        logits: bool,
        **keep: Any,
    ):
        last = keep.pop("logits_to_keep", None)
        with torch.no_grad():  # nothing below the adaptor is trained
            states, cache = super()._continue(tokens, cache, mask, positions, False, **keep)
        if not logits:
            return states, cache
        if last is not None:
            states = states[:, -last:]
        return self.speak(states), cache

    def logits_of(self, states: Float[Tensor, "N T D"]) -> Float[Tensor, "N T V"]:
        return self.speak(states)

    def _scaled_head(self) -> None:
        """There is an MLP between."""

    def speak(
        self, states: Float[Tensor, "*N D"], tokens: Int[Tensor, "*N C"] | None = None
    ) -> Float[Tensor, "*N V"]:
        """Logits from the frozen model's states: all that depends on the adaptor.

        Args:
            tokens: The only tokens whose logits are wanted; then [*N, C], for C rows of the head
                in place of all.
        """
        first = self.adaptor[0]
        assert isinstance(first, nn.Linear)
        adapted = self.adaptor(states.to(first.weight.dtype))
        out = self._spoken(states + adapted if self.residual else adapted, tokens)
        forbidden = self.forbidden
        if forbidden is None:
            return out
        return out.masked_fill(forbidden if tokens is None else forbidden[tokens], -torch.inf)

    def _spoken(
        self, states: Float[Tensor, "*N D"], tokens: Int[Tensor, "*N C"] | None
    ) -> Float[Tensor, "*N V"]:
        """The language model's own logits of states, or of some tokens.

        Only where its head is a bare product are those tokens' rows enough; a model that scales or
        bounds its logits (Granite, Gemma-2) does so by its own code.
        """
        head: Any = self.model.get_output_embeddings() if self._bare else None
        if head is None:
            rows = states.reshape(1, -1, states.shape[-1])
            out = own_logits(self.model, rows).view(*states.shape[:-1], -1)
            return out if tokens is None else out.gather(-1, tokens)
        if tokens is None:
            return head(states)
        out = products_with_rows(states, head.weight, tokens)
        return out if head.bias is None else out + head.bias[tokens]


@dataclass(frozen=True)
class Drawn:
    """What a policy on a frozen model drew, and what of that training the adaptor needs again."""

    tokens: Int[Tensor, "N T"]
    states: Float[Tensor, "N T D"]  # the frozen model's, before each token
    candidates: Int[Tensor, "N T C"] | None = None  # what top-k left to draw from; None: everything
    finite: Bool[Tensor, ""] | None = None  # whether the policy's logits were finite
    narrow: bool = False  # computed in a narrower type than the one that the policy learns in

    def require_finite(self) -> None:
        """Raises a DivergedError if the policy had no distribution to draw from."""
        if self.finite is not None and not self.finite:
            raise DivergedError(
                "the policy's logits at a token of a generation are not finite: its weights have "
                "diverged; what is saved stays. Try a lower learning rate"
            )


@torch.no_grad()
def draw_prompts(
    lm: AdaptedLanguageModel, source: TokenIds, noise: Float[Tensor, "N T"], decoding: Decoding
) -> Drawn:
    """N generations of one source, none ending early.

    The tokens are those that `generate` draws with the same noise. Where the policy's logits are
    not finite there is no token to draw, and any is given: nothing here looks, since a GPU would
    have to be waited for at each token; a loss on them is not finite either, and `Drawn.finite`
    tells.
    """
    ids = torch.tensor([source], device=lm.device)
    reading = lm.prefill(ids, torch.ones_like(ids).bool(), logits=False)
    logits = lm.speak(reading.output[:, -1])  # one row: all begin with one state
    reading = reading.select([0] * len(noise))
    tokens, states, left, peaks = [], [reading.output[:, -1]], [], []
    for t in range(noise.shape[1]):
        if t > 0:
            read = torch.ones_like(tokens[-1][:, None]).bool()
            states.append(lm.extend(reading, tokens[-1][:, None], read, logits=False)[:, -1])
            logits = lm.speak(states[-1])
        peaks.append(logits.amax(-1).sum())  # NaN, or nothing is allowed
        found, restricted = drawable(logits, decoding)
        place = draw(restricted.expand(len(noise), -1), noise[:, t])
        place = place.clamp(max=restricted.shape[-1] - 1)
        if found is not None:
            left.append(found.expand(len(noise), -1))
            place = left[-1].gather(-1, place[:, None]).squeeze(-1)
        tokens.append(place)
    chosen = torch.stack(left, 1) if left else None
    finite = torch.stack(peaks).isfinite().all()
    narrow = torch.is_autocast_enabled(lm.device.type)
    return Drawn(torch.stack(tokens, 1), torch.stack(states, 1), chosen, finite, narrow)


@torch.no_grad()
def read_again(lm: AdaptedLanguageModel, batch: TokenBatch) -> Drawn:
    """Given sequences as a learner reads them: states in its own type, nothing left out."""
    with evaluating(lm):
        return Drawn(batch.tokens, lm.states(batch)[:, :-1])


def adapt(
    lm: LanguageModel,
    width: int,
    seed: int,
    *,
    residual: bool = False,
    allowed: Sequence[int] | None = None,
) -> AdaptedLanguageModel:
    """A fresh adaptor on a causal LM, drawn from `seed` alone.

    Raises:
        ArtifactError: The model is an encoder-decoder.
    """
    if lm.is_encoder_decoder:
        raise ArtifactError("policy.adaptor works on causal LMs; this is an encoder-decoder")
    with seeded(seed):
        return AdaptedLanguageModel(lm.model, width, residual=residual, allowed=allowed)


def fingerprint(lm: LanguageModel) -> str:
    """sha256 of the frozen model's LM head: tells one language model from another."""
    head: Any = lm.model.get_output_embeddings()
    weight = head.weight.detach().float().cpu().contiguous()
    return hashlib.sha256(weight.numpy().tobytes()).hexdigest()


@first
def save_adaptor(lm: LanguageModel, folder: Path) -> None:
    """Write the MLP, and which language model it belongs to."""
    assert isinstance(lm, AdaptedLanguageModel)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / ADAPTOR_WEIGHTS, dict(lm.adaptor.state_dict()))
    write_json(folder / ADAPTOR_JSON, {"language_model": fingerprint(lm)})


def load_adaptor(lm: LanguageModel, folder: Path) -> None:
    """Put a saved MLP into an adapted language model.

    Raises:
        ArtifactError: It was trained on another language model.
    """
    assert isinstance(lm, AdaptedLanguageModel)
    about = read_json(folder / ADAPTOR_JSON)
    if not isinstance(about, dict) or about.get("language_model") != fingerprint(lm):
        raise ArtifactError(
            f"{folder}: this adaptor was trained on another language model than the policy's; "
            "give the policy.path (and policy.revision) that the run was started with"
        )
    load_module(lm.adaptor, folder / ADAPTOR_WEIGHTS)
