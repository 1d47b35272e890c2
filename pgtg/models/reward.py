"""The token reward model r_phi(s_t, a_t): a language model's states or logits, a head, a bound.

Heads, each a function of the state s_t before a token and the token a_t itself:

- `paper`: the state after a_t, through an MLP; the paper's, and the released code's.
- `state_action`: states before and after a_t, a_t's embedding, and state-before times embedding,
  through an MLP; the state after a_t need not remember how a_t had been predicted.
- `linear`: the state after a_t, through one linear layer; what other libraries read as well.
- `logprob`: log-probability of a_t under the reward net's own LM head, scaled and shifted; starts
  as the confidence of the LM, and is trained from there.
- `log_ratio`: beta times what log-probability a_t has gained since the LM was as it started, which
  is kept as a frozen reference; 0 at the start, so it is free of the LM's confidence.

The raw output z is bounded in float32 (`ops/bounds.py`). Saved as a Transformers folder that plain
`from_pretrained` loads, with `reward_head.safetensors` and `reward_head.json` next to the backbone,
and a reference, where the head has one, in a folder of its own within; so is the start policy where
units of credit end by its entropy, and a fitted normaliser in `reward_normalizer.json`.
"""

import copy
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from pgtg.config import RewardConfig
from pgtg.config.registry import HEADS
from pgtg.errors import ArtifactError, ConfigError
from pgtg.models.backends.layers import with_fast_layers
from pgtg.models.backends.sharding import weights_of
from pgtg.models.batch import right_padded
from pgtg.models.language import LanguageModel
from pgtg.models.loading import load_language_model, save_language_model
from pgtg.models.lora import merge_lora
from pgtg.models.trust import load_module
from pgtg.ops.bounds import BOUNDS
from pgtg.ops.normalizing import ByPlace, places_of
from pgtg.ops.sampling import seeded
from pgtg.ops.segments import ends_by_entropy, ends_by_sign, ends_by_size, shared
from pgtg.runs.files import plain_file
from pgtg.runs.folder import read_json, save_tensors, write_json
from pgtg.types import TokenBatch

HEAD_JSON, HEAD_WEIGHTS = "reward_head.json", "reward_head.safetensors"
NORMALIZER = "reward_normalizer.json"
REFERENCE = "reference"  # folder of the frozen model that a head compares with
START = "start"  # folder of the start policy, where units of credit end by its entropy
SEGMENTS = ("sentence", "tokens", "entropy")
UNITS, SPREADS = ("token", "segment", "sequence"), ("copy", "even", "end")
CLOSING = (
    ".",
    "!",
    "?",
    "\u2026",
    "\u3002",
    "\uff01",
    "\uff1f",
    "\u010a",
    "\n",
)  # \u010a: byte-level \n
OPENING = ("\u0120", "\u2581", "\u010a", " ", "\n")  # byte-level and SentencePiece's space first
MAX_MLP_WIDTH = 2**24  # far above any; a stranger's file may claim more than there are numbers for


@dataclass(frozen=True)
class HeadSpec:
    """All that is needed to rebuild a head on its backbone."""

    head: str
    bound: str
    mlp_width: int
    beta: float = 1.0  # scale of log_ratio
    granularity: str = "token"  # unit of credit: "token", "segment" or "sequence"
    segments: str = "sentence"  # what a segment is: "sentence", "tokens" or "entropy"
    segment_tokens: int = 8  # of a segment by tokens
    segment_entropy: float = 1.0  # [nats] of the start policy, above which another one begins
    spread: str = "copy"  # how a unit's reward is given to its tokens (`ops.segments`)

    @classmethod
    def of(cls, cfg: RewardConfig, head: str = "") -> Self:
        """The config's head, or another one with its options."""
        values: dict[str, Any] = {field.name: getattr(cfg, field.name) for field in fields(cls)}
        return cls(**{**values, "head": head or cfg.head})

    @property
    def by_entropy(self) -> bool:
        """Whether units of credit end where the start policy is unsure."""
        return self.granularity == "segment" and self.segments == "entropy"


SPEC: dict[str, type] = {field.name: field.type for field in fields(HeadSpec)}  # type: ignore[misc]


def mlp(inputs: int, width: int) -> nn.Sequential:
    """inputs -> width -> ReLU -> 1, Xavier-uniform with gain 1e-4 and bias -1e-4.

    Source: docs/method.md, "Token rewards".
    """
    layers = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, 1))
    for layer in (layers[0], layers[2]):
        _begin_small(layer)
    return layers


def _begin_small(layer: nn.Module) -> None:
    """Weights and bias near 0, so that all tokens start with about the same reward."""
    assert isinstance(layer, nn.Linear)
    nn.init.xavier_uniform_(layer.weight, gain=1e-4)
    nn.init.constant_(layer.bias, -1e-4)


class PaperHead(nn.Module):
    """z_t = MLP(state after a_t)."""

    def __init__(self, width: int, spec: HeadSpec):
        super().__init__()
        self.mlp = mlp(width, spec.mlp_width)

    def forward(self, lm: LanguageModel, batch: TokenBatch) -> Float[Tensor, "N T"]:
        return self.mlp(lm.states(batch)[:, 1:].float()).squeeze(-1)


class LinearHead(nn.Module):
    """z_t = w · (state after a_t) + b; starts as small as the MLPs do."""

    def __init__(self, width: int, spec: HeadSpec):
        super().__init__()
        self.score = nn.Linear(width, 1)
        _begin_small(self.score)

    def forward(self, lm: LanguageModel, batch: TokenBatch) -> Float[Tensor, "N T"]:
        return self.score(lm.states(batch)[:, 1:].float()).squeeze(-1)


class StateActionHead(nn.Module):
    """z_t = MLP([h_t, h_{t-1}, e(a_t), h_{t-1} * e(a_t)]), h_{t-1} before and h_t after a_t.

    Each part is normalised on its own, since states and embeddings differ in scale by orders.
    """

    def __init__(self, width: int, spec: HeadSpec):
        super().__init__()
        self.mlp = mlp(4 * width, spec.mlp_width)

    def forward(self, lm: LanguageModel, batch: TokenBatch) -> Float[Tensor, "N T"]:
        states, action = _unit(lm.states(batch).float()), _unit(lm.embeddings(batch).float())
        before, after = states[:, :-1], states[:, 1:]
        return self.mlp(torch.cat([after, before, action, before * action], dim=-1)).squeeze(-1)


def _unit(x: Float[Tensor, "N T D"]) -> Float[Tensor, "N T D"]:
    """Layer normalisation without weights."""
    return nn.functional.layer_norm(x, x.shape[-1:])


class LogProbHead(nn.Module):
    """z_t = a log p_phi(a_t | s_t) + b under the reward net's LM head; a = b = 1 at the start."""

    def __init__(self, width: int, spec: HeadSpec):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.shift = nn.Parameter(torch.ones(1))

    def forward(self, lm: LanguageModel, batch: TokenBatch) -> Float[Tensor, "N T"]:
        return self.scale * lm.log_probabilities(batch) + self.shift


class LogRatioHead(nn.Module):
    """z_t = beta [log pi_phi(a_t | s_t) - log pi_ref(a_t | s_t)]; no weights of its own.

    Source: the implicit reward of DPO (arXiv:2305.18290) and, by token, of PRIME (2502.01456).
    """

    def __init__(self, width: int, spec: HeadSpec):
        super().__init__()
        self.beta = spec.beta

    def forward(
        self, lm: LanguageModel, batch: TokenBatch, reference: LanguageModel
    ) -> Float[Tensor, "N T"]:
        with torch.no_grad():
            before = reference.log_probabilities(batch)
        return self.beta * (lm.log_probabilities(batch) - before)


def head_size(width: int, spec: HeadSpec) -> int:
    """Weights of a head on a backbone of this width; it is built without memory."""
    with torch.device("meta"):
        return sum(p.numel() for p in HEADS[spec.head].load()(width, spec).parameters())


class RewardModel(nn.Module):
    """r_phi(s_t, a_t) for each token of N sequences that continue B sources.

    Args:
        backbone: The language model whose states or logits the head reads; all weights are trained.
        spec: Head, bound and width.
        reference: The backbone as it started, for a head that compares with it; it is not trained.
        tokenizer: For units of credit that end where sentences do.
        start: The start policy, for those that end where it is unsure; it is not trained.

    Attributes:
        normalizer: Fitted to what it gives for held-out samples, by `reward.normalize`.
        normalizing: Whether rewards are normalised: where a policy learns from them.
    """

    def __init__(
        self,
        backbone: LanguageModel,
        spec: HeadSpec,
        reference: LanguageModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        start: LanguageModel | None = None,
    ):
        super().__init__()
        assert (reference is not None) == HEADS[spec.head].reference
        self.backbone, self.spec = backbone, spec
        self.head = with_fast_layers(HEADS[spec.head].load()(backbone.width, spec))
        self.bound = BOUNDS[spec.bound]
        self.reference = None if reference is None else reference.eval().requires_grad_(False)
        self.start = None if start is None else start.eval().requires_grad_(False)
        self.normalizer: ByPlace | None = None
        self.normalizing = False
        self._signs: tuple[Tensor, Tensor] | None = None
        if spec.granularity == "segment" and spec.segments == "sentence":
            if tokenizer is None:
                raise ConfigError("reward.segments: sentences need the tokenizer; choose tokens")
            self._signs = signs_of(tokenizer)
        if spec.by_entropy and start is None:
            raise ConfigError("reward.segments: entropy needs the start policy; choose tokens")

    @property
    def language_models(self) -> list[LanguageModel]:
        """Those that a token reward is read from; `start` says where units end, and keeps its
        precision: rounded otherwise, they would end elsewhere."""
        return [self.backbone, *([] if self.reference is None else [self.reference])]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for frozen in (self.reference, self.start):
            if frozen is not None:
                frozen.eval()
        return self

    def raw(self, batch: TokenBatch) -> Float[Tensor, "N T"]:
        """z_t, the head's outputs, where the tokens stand; those at padding have no meaning."""
        more = [] if self.reference is None else [self.reference]
        z = self.head(self.backbone, right_padded(batch), *more)
        return z.gather(-1, (batch.mask.cumsum(-1) - 1).clamp(min=0))

    def forward(self, batch: TokenBatch) -> Float[Tensor, "N T"]:
        """Token rewards in float32, where the tokens stand; those at padding have no meaning.

        With larger units of credit each token's is what it gets of its unit's.
        """
        rewards = self.bound(self.raw(batch))
        if self.normalizing and self.normalizer is not None:
            rewards = self.normalizer(rewards, places_of(batch.mask))
        if self.spec.granularity == "token":
            return rewards
        order = (~batch.mask).to(torch.uint8).argsort(dim=-1, stable=True)  # to the right
        mask, ends = batch.mask.gather(-1, order), self._ends(right_padded(batch))
        found = shared(rewards.gather(-1, order), ends, mask, self.spec.spread)
        return found.gather(-1, (batch.mask.cumsum(-1) - 1).clamp(min=0))

    @torch.no_grad()
    def unit_rewards(self, batch: TokenBatch) -> Float[Tensor, "N T"]:
        """Rewards of units at their last tokens, neither shared nor normalised; NaN elsewhere."""
        rewards = self.bound(self.raw(batch))
        if self.spec.granularity == "token":
            return rewards
        ends = self._ends(right_padded(batch))
        ends = ends.gather(-1, (batch.mask.cumsum(-1) - 1).clamp(min=0)) & batch.mask
        return rewards.where(ends, torch.nan)

    def _ends(self, batch: TokenBatch) -> Bool[Tensor, "N T"]:
        """The last token of each unit of credit, in right-padded rows."""
        ids, mask = batch.tokens, batch.mask
        if self.spec.granularity == "sequence":
            return ends_by_size(mask, mask.shape[1] + 1)
        if self.start is not None:
            with torch.no_grad():
                return ends_by_entropy(self.start.entropies(batch), self.spec.segment_entropy, mask)
        if self._signs is None:
            return ends_by_size(mask, self.spec.segment_tokens)
        self._signs = closing, opening = (
            self._signs[0].to(ids.device),
            self._signs[1].to(ids.device),
        )
        return ends_by_sign(closing[ids], opening[ids], mask)


def signs_of(tokenizer: PreTrainedTokenizerBase) -> tuple[Bool[Tensor, " V"], Bool[Tensor, " V"]]:
    """Which tokens of a vocabulary close a sentence, and which can open the next one: those that
    begin with a space or are special; where none does, as in a vocabulary of words, all."""
    vocabulary = tokenizer.get_vocab()
    closing, opening = torch.zeros(2, max(vocabulary.values()) + 1, dtype=torch.bool)
    special = {*tokenizer.all_special_tokens}
    spaced = any(token.startswith(OPENING) for token in vocabulary)
    for token, number in vocabulary.items():
        closing[number] = token.rstrip("'\")]\u201d\u2019").endswith(CLOSING)
        opening[number] = token in special or not spaced or token.startswith(OPENING)
    return closing, opening


def build_reward_model(
    backbone: LanguageModel,
    spec: HeadSpec,
    seed: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
    start: LanguageModel | None = None,
) -> RewardModel:
    """A fresh head on a pretrained backbone, drawn from `seed` alone.

    Args:
        start: The start policy, read where units of credit end by its entropy.
    """
    reference = copy.deepcopy(backbone) if HEADS[spec.head].reference else None
    start = start if spec.by_entropy else None
    with seeded(seed):
        return RewardModel(backbone, spec, reference, tokenizer, start).to(backbone.device)


def randomize_head(model: RewardModel, seed: int) -> None:
    """Draw the head's layers again, without the small gain that lets a trained one start near a
    constant. The two numbers of a `logprob` head are no layer: drawn, they could turn it around."""
    with seeded(seed), torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                parameter.normal_()


def save_reward_model(model: RewardModel, folder: Path, probe: TokenBatch, tokenizer) -> None:
    """Write a Transformers folder and the head, then check that it reloads to the same rewards.

    Low-rank adapters of the backbone are merged into its weights.

    Raises:
        ArtifactError: The reloaded model gives other rewards on the probe batch.
    """
    merge_lora(model.backbone)
    save_language_model(model.backbone, tokenizer, folder)
    if model.reference is not None:
        save_language_model(model.reference, tokenizer, folder / REFERENCE)
    if model.start is not None:
        save_language_model(model.start, tokenizer, folder / START)
    if model.normalizer is not None:
        write_json(folder / NORMALIZER, asdict(model.normalizer))
    save_tensors(folder / HEAD_WEIGHTS, weights_of(model.head))
    write_json(folder / HEAD_JSON, asdict(model.spec))
    reloaded = load_reward_model(folder).to(probe.tokens.device)
    with torch.no_grad():
        expected, found = model.eval()(probe)[probe.mask], reloaded.eval()(probe)[probe.mask]
    if not torch.allclose(expected, found, rtol=1e-5, atol=1e-6):
        gap = (expected - found).abs().max().item()
        raise ArtifactError(
            f"{folder}: the saved reward model reloads to other rewards (largest gap {gap:.2e} on "
            "a probe batch); please report this with the backbone's name"
        )


def load_reward_model(folder: Path) -> RewardModel:
    """Rebuild a saved reward model.

    Raises:
        ArtifactError: The folder holds no reward head, or one that does not fit its weights.
    """
    if not (folder / HEAD_JSON).is_file():
        raise ArtifactError(f"{folder}: no {HEAD_JSON} here; a saved reward model has one")
    spec = _head_spec(folder)
    room = plain_file(folder / HEAD_WEIGHTS, max_bytes=2**40).st_size
    backbone, tokenizer = load_language_model(str(folder))
    if 4 * head_size(backbone.width, spec) > room:
        raise _unfit(folder)
    reference = None
    if HEADS[spec.head].reference:
        reference, _ = load_language_model(str(folder / REFERENCE))
    start = load_language_model(str(folder / START))[0] if spec.by_entropy else None
    model = RewardModel(backbone, spec, reference, tokenizer, start)
    load_module(model.head, folder / HEAD_WEIGHTS)
    model.normalizer = _normalizer(folder)
    return model


def _normalizer(folder: Path) -> ByPlace | None:
    """What reward_normalizer.json says; None if there is none.

    Raises:
        ArtifactError: No fit gives that.
    """
    if not (folder / NORMALIZER).is_file():
        return None
    try:
        found = read_json(folder / NORMALIZER)
        mean, sd = (tuple(map(float, found[name])) for name in ("mean", "sd"))
        normalizer = ByPlace(mean, sd, float(found["least"]), int(found["longest"]))  # type: ignore[arg-type]
        if len(mean) == len(sd) == 2 and normalizer.is_sound():
            return normalizer
    except (KeyError, TypeError, ValueError):
        pass
    raise ArtifactError(f"{folder / NORMALIZER} describes no normaliser: make the reward again")


def _head_spec(folder: Path) -> HeadSpec:
    """What reward_head.json says.

    Raises:
        ArtifactError: No head that this pgtg knows.
    """
    found = read_json(folder / HEAD_JSON)
    if isinstance(found, dict) and {"head", "bound", "mlp_width"} <= {*found} <= {*SPEC}:
        spec = HeadSpec(**found)  # an older folder lacks what came later
        kinds = all(type(getattr(spec, name)) is kind for name, kind in SPEC.items())
        known = kinds and spec.head in HEADS and spec.bound in BOUNDS and spec.beta > 0
        units = spec.granularity in UNITS and spec.segments in SEGMENTS
        sizes = known and 1 <= spec.mlp_width <= MAX_MLP_WIDTH and spec.segment_tokens >= 1
        if sizes and units and spec.spread in SPREADS and spec.segment_entropy >= 0:
            return spec
    raise _unfit(folder)


def _unfit(folder: Path) -> ArtifactError:
    return ArtifactError(f"{folder / HEAD_JSON} describes no reward head that fits: make it again")
