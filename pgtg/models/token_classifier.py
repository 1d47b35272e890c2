"""A reward model as a plain Transformers token classifier: the folder that `pgtg export` writes.

A `…ForTokenClassification` with one linear `score`: its logit at the place of a token a_t is the
raw output z_t of a linear reward head. The run's reward is r_t = bound(z_t). What else a reader
needs (the bound, the aggregator, how texts become token ids) stands in `pgtg_reward.json`, next to
the weights. Such a folder may be a stranger's: see `models/trust.py`.
"""

import copy
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pgtg.config import AggregatorConfig
from pgtg.config.registry import AGGREGATORS
from pgtg.errors import ArtifactError, ConfigError
from pgtg.models.chat import ChatCodec
from pgtg.models.codec import Codec, PromptCodec
from pgtg.models.loading import require_pair
from pgtg.models.structure import layers_of
from pgtg.models.trust import check_folder, load, unloadable
from pgtg.ops.bounds import BOUNDS
from pgtg.ops.masking import move_padding
from pgtg.ops.objectives import mle_weights, threshold_weights
from pgtg.runs.folder import read_json
from pgtg.types import TokenBatch

REWARD_JSON = "pgtg_reward.json"
FORMAT = 1
CODECS: dict[str, type[Codec]] = {"text": Codec, "chat": ChatCodec, "prompt": PromptCodec}


# --- making one


def classifier_of(lm: PreTrainedModel, score: nn.Linear) -> PreTrainedModel:
    """A causal LM's layers under one linear score, as its family's token classifier.

    Whether the family has one is decided on the classes: Transformers maps the config to a class
    that holds the same layers, and that reads their last states by a linear layer named `score`,
    which is the name that servers know. It holds the very layers of `lm`, no copies.

    Raises:
        ConfigError: It has none.
    """
    config = copy.deepcopy(lm.config)
    config.id2label, config.label2id = {0: "reward"}, {"reward": 0}
    config.problem_type, config.classifier_dropout = "regression", 0.0
    config.dtype = torch.float32
    cls = None if config.is_encoder_decoder else _mapped(type(config))
    if cls is None:
        raise _no_classifier(lm, "Transformers has none for it")
    with torch.device("meta"):
        made = cls(config)
    layers, prefix = getattr(made, made.base_model_prefix, None), made.base_model_prefix
    own, found = layers_of(lm), getattr(made, "score", None)
    if not (isinstance(found, nn.Linear) and found.weight.shape == score.weight.shape):
        raise _no_classifier(lm, f"the layer of {cls.__name__} has another name or size")
    if found.bias is None or type(layers) is not type(own):
        raise _no_classifier(lm, f"{cls.__name__} has no bias, or other layers")
    setattr(made, prefix, own)
    made.score = score
    return made.eval()


def _mapped(config: type) -> Any:
    return MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING.get(config, None)


def _no_classifier(lm: PreTrainedModel, why: str) -> ConfigError:
    return ConfigError(
        f"a {type(lm).__name__} has no token classifier with one linear `score` on its layers "
        f"({why}): take its rewards by `pgtg export tokens` or pgtg.load_reward_model, or train "
        "with a policy and reward.path of a family that has one (Llama, Qwen, Mistral, Gemma, Phi)"
    )


# --- what the json says


@dataclass(frozen=True)
class About:
    """The run that learned a reward model, as far as reading its rewards depends on it.

    Args:
        task: Its task.
        name: Its name.
        seed: Its seed.
        head: Its reward head.
        bound: Name of the bound: r = bound(z).
        aggregator: Token rewards -> one evaluation of a sequence.
        transform: g of the token weights w_t = g(r_t) / sum g(r), "none" or "exp".
        reward_to_go: Whether weights are of the reward-to-go.
        form: "share", or how tokens are told apart by a threshold.
        threshold: Token reward from which a token then counts 1/|y|; None before it is known.
        below: What others then count, as a multiple of that.
    """

    task: str
    name: str
    seed: int
    head: str
    bound: str
    aggregator: AggregatorConfig
    transform: str = "none"
    reward_to_go: bool = False
    form: str = "share"
    threshold: float | None = None
    below: float = 0.0

    def weights(
        self, rewards: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"]
    ) -> Float[Tensor, "N T"]:
        """The weight of each token in the run's reward-weighted maximum likelihood.

        Raises:
            ConfigError: Its threshold is the mean of targets that are not read yet.
        """
        if self.form == "share":
            return mle_weights(rewards, mask, transform=self.transform, to_go=self.reward_to_go)
        if self.threshold is None:
            raise ConfigError(
                f"method.weights={self.form}: its threshold is known once the policy of "
                f"{self.name} is trained, or where method.threshold gives it"
            )
        return threshold_weights(rewards - self.threshold, mask, below=self.below)

    def as_json(self) -> dict[str, Any]:
        """What `about_from_json` reads back."""
        return {
            "run": {"task": self.task, "name": self.name, "seed": self.seed, "head": self.head},
            "bound": self.bound,
            "aggregator": asdict(self.aggregator),
            "weights": {
                "transform": self.transform,
                "reward_to_go": self.reward_to_go,
                "form": self.form,
                "threshold": self.threshold,
                "below": self.below,
            },
        }


def about_from_json(found: Any) -> About:
    """What `About.as_json` made.

    Raises:
        TypeError, ValueError, KeyError: It did not make this.
        ConfigError: An aggregator of a plugin that this call does not name.
    """
    run, weights, aggregator = found["run"], found["weights"], found["aggregator"]
    about = About(
        task=_of(str, run["task"]),
        name=_of(str, run["name"]),
        seed=_of(int, run["seed"]),
        head=_of(str, run["head"]),
        bound=_of(str, found["bound"]),
        aggregator=AggregatorConfig(
            _of(str, aggregator["name"]),
            _of(float, aggregator["temperature"]),
            _of(bool, aggregator["length_normalized"]),
        ),
        transform=_of(str, weights["transform"]),
        reward_to_go=_of(bool, weights["reward_to_go"]),
        form=_of(str, weights.get("form", "share")),
        threshold=None if weights.get("threshold") is None else _of(float, weights["threshold"]),
        below=_of(float, weights.get("below", 0.0)),
    )
    known = about.bound in BOUNDS and about.transform in ("none", "exp")
    if not (known and about.aggregator.temperature > 0):
        raise ValueError
    _ = AGGREGATORS[about.aggregator.name]
    return about


def _of(kind: type, value: Any) -> Any:
    """The value, if it is of this very type. Raises TypeError."""
    if type(value) is not kind:
        raise TypeError(value)
    return value


def codec_as_json(codec: Codec) -> dict[str, Any]:
    """How texts become token ids: all fields of a codec but its tokenizer, and its kind."""
    kind = next(name for name, cls in CODECS.items() if type(codec) is cls)
    values = {f.name: getattr(codec, f.name) for f in fields(codec) if f.name != "tokenizer"}
    return {"kind": kind, **values, "ends": list(codec.ends)}


def codec_from_json(reading: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Codec:
    """The codec that `codec_as_json` described.

    Raises:
        TypeError, ValueError, KeyError: It described none.
    """
    values = dict(reading)
    cls = CODECS[_of(str, values.pop("kind"))]
    ends = tuple(_of(int, number) for number in _of(list, values.pop("ends")))
    kinds: dict[str, Any] = {f.name: f.type for f in fields(cls)}
    for name, value in values.items():
        allowed = (str, type(None)) if name == "start_text" else (kinds[name],)
        if type(value) not in allowed or (type(value) is int and not 0 < value < 2**31):
            raise ValueError(name)
    return cls(tokenizer, **values, ends=ends)


# --- reading one


class TokenClassifier(nn.Module):
    """r_phi(s_t, a_t) by a token classifier, for each token of N sequences that continue B sources.

    Each row is read whole, by the plain forward pass that other libraries make too.

    Args:
        model: A `…ForTokenClassification` with one label.
        bound: Name of the bound: r = bound(z).
    """

    def __init__(self, model: PreTrainedModel, bound: str):
        super().__init__()
        self.model, self.bound = model, BOUNDS[bound]

    def raw(self, batch: TokenBatch) -> Float[Tensor, "N T"]:
        """z_t, the logits, where the tokens stand; those at padding have no meaning."""
        rows, columns = batch.origin, batch.tokens.shape[1]
        ids = torch.cat([batch.source[rows], batch.tokens], dim=1)
        mask = torch.cat([batch.source_mask[rows], batch.mask], dim=1)
        compact, real = move_padding(ids, mask, side="right")
        out = self.model(input_ids=compact, attention_mask=real.long(), use_cache=False)
        place = (mask.cumsum(-1) - 1).clamp(min=0)[:, -columns:]
        return out.logits[..., 0].float().gather(1, place)

    def forward(self, batch: TokenBatch) -> Float[Tensor, "N T"]:
        """Token rewards in float32, where the tokens stand; those at padding have no meaning."""
        return self.bound(self.raw(batch))


def is_exported(folder: Path) -> bool:
    """Whether a folder says that it holds an exported reward model."""
    return (folder / REWARD_JSON).exists()


def load_reading(folder: Path) -> tuple[About, Codec]:
    """What an exported folder says, and how it reads texts; no weights.

    Raises:
        ArtifactError: No exported folder; damaged, with a link in it, or not to be trusted.
        MissingResourceError: It has no tokenizer.
        ConfigError: It was learned with a plugin that this call does not name.
    """
    found = _checked(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # libraries answer odd folders with errors of any kind
        raise unloadable(str(folder), "tokenizer", error) from error
    try:
        return about_from_json(found), codec_from_json(found["reading"], tokenizer)
    except (KeyError, TypeError, ValueError) as error:
        raise _odd(folder) from error


def load_token_classifier(folder: Path) -> TokenClassifier:
    """An exported reward model, in eval mode on the CPU.

    Raises:
        ArtifactError: No exported folder; damaged, with a link in it, or not to be trusted.
        MissingResourceError: It lacks weights, or holds another kind of model.
        ConfigError: It was learned with a plugin that this call does not name.
    """
    found = _checked(folder)
    try:
        about = about_from_json(found)
    except (KeyError, TypeError, ValueError) as error:
        raise _odd(folder) from error
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if config.num_labels != 1:
            raise ArtifactError(f"{folder}: {config.num_labels} labels, a reward model has one")
        auto = AutoModelForTokenClassification
        model = load(str(folder), auto, config, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # libraries answer odd folders with errors of any kind
        raise unloadable(str(folder), "model", error) from error
    require_pair(str(folder), model, tokenizer)
    return TokenClassifier(model, about.bound).eval()


def _checked(folder: Path) -> dict[str, Any]:
    """What the json says, once nothing in the folder leads outside or runs anything."""
    path = folder / REWARD_JSON
    if not folder.is_dir() or not is_exported(folder):
        raise ArtifactError(f"{folder}: no {REWARD_JSON} here; `pgtg export reward` writes one")
    for file in sorted(folder.iterdir()):
        if file.is_symlink():
            raise ArtifactError(
                f"{file} is a link: an exported folder holds plain files (copy it with `cp -L`, "
                "or download it with `hf download --local-dir`)"
            )
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise _odd(folder)
    check_folder(str(folder))
    return found


def _odd(folder: Path) -> ArtifactError:
    return ArtifactError(
        f"{folder / REWARD_JSON} describes no exported reward model of format {FORMAT}: export it "
        "again"
    )
