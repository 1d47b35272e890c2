"""What the models of a run take, known from their configs alone: nothing is loaded or fetched."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgtg.config import DEPTHS, PolicyConfig, RunConfig, judge_model_of
from pgtg.config.registry import HEADS

FLOAT32 = 4  # bytes
ITEMS = {"auto": 4, "float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}  # bytes of one weight
FILES = 2.5e6  # bytes of tokenizer and config next to the weights, where they cannot be looked at


@dataclass(frozen=True)
class ModelSize:
    """A language model as it stands in memory and on the disk.

    Args:
        parameters: Its weights, tied ones counted once.
        trained: Those that a training changes.
        item: Bytes of one weight.
        files: Bytes of what is saved next to the weights (tokenizer, configs).
        config: The Transformers config, None for a model that is made in the set-up.
    """

    parameters: int
    trained: int
    item: int = FLOAT32
    files: float = FILES
    config: Any = None

    @property
    def weights(self) -> float:
        """Bytes of the weights."""
        return float(self.parameters * self.item)

    @property
    def changed(self) -> float:
        """Bytes of the weights that are trained."""
        return float(self.trained * self.item)

    @property
    def moments(self) -> float:
        """Bytes of Adam's two moments."""
        return 2 * self.changed

    @property
    def saved(self) -> float:
        """Bytes of a folder that holds the whole model."""
        return self.weights + self.files


@dataclass(frozen=True)
class ModelSizes:
    """The models of a run; a judge only where it is a pretrained model."""

    policy: ModelSize
    reward: ModelSize
    head: int  # weights of the reward head, float32
    judge: ModelSize | None = None
    adaptor: int = 0  # weights of a trained adaptor, float32
    lora: bool = False  # whether only low-rank adapters of the policy are trained, and saved
    copies: int = 1  # of the reward backbone: a head may compare it with a frozen reference

    @property
    def reward_saved(self) -> float:
        """Bytes of a saved reward model."""
        return self.copies * self.reward.saved + FLOAT32 * self.head

    @property
    def policy_saved(self) -> float:
        """Bytes of a saved policy: adapters alone where the language model is frozen."""
        if self.lora:
            return self.policy.changed + self.policy.files
        return float(FLOAT32 * self.adaptor) if self.adaptor else self.policy.saved

    @property
    def policy_trained(self) -> float:
        """Bytes of the policy's trained weights."""
        return float(FLOAT32 * self.adaptor) if self.adaptor else self.policy.changed


def model_sizes(cfg: RunConfig) -> ModelSizes | None:
    """The sizes of a run's models; None where one is not on this machine."""
    policy = _policy(cfg)
    if policy is None:
        return None
    reward = policy
    if cfg.reward.path or cfg.reward.layers is not None:
        item = ITEMS[cfg.policy.dtype]
        found = _pretrained(cfg.reward.path or cfg.policy.path, item, cfg.reward.layers)
        if found is None and cfg.reward.path:
            return None
        reward = found or policy
    else:
        number, lora = policy.parameters, cfg.reward.lora
        trained = number if lora is None else _adapters(cfg.policy.path, lora.rank)
        reward = ModelSize(number, trained, policy.item, policy.files, policy.config)
    judge, asked = None, judge_model_of(cfg)
    if asked is not None and asked[1].path is not None:
        judge = _pretrained(asked[1].path, ITEMS[asked[1].dtype])
        if judge is None:
            return None
    width = _width(policy.config)
    adaptor = 0
    if cfg.policy.adaptor is not None:
        inner = cfg.policy.adaptor.width
        adaptor = width * inner + inner + inner * width + width
    head = _head(cfg, _width(reward.config))
    by_entropy = (cfg.reward.granularity, cfg.reward.segments) == ("segment", "entropy")
    copies = 1 + HEADS[cfg.reward.head].reference + by_entropy  # the start policy, read for it
    return ModelSizes(policy, reward, head, judge, adaptor, cfg.policy.lora is not None, copies)


def _policy(cfg: RunConfig) -> ModelSize | None:
    policy = cfg.policy
    if policy.tiny_t5 is not None:
        return _tiny_t5(cfg)
    if policy.tiny_lm is not None:
        return _tiny_lm(cfg)
    found = _pretrained(policy.path, ITEMS[policy.dtype])
    if found is None:
        return None
    trained = 0 if policy.adaptor is not None else _trained(policy, found.parameters)
    return ModelSize(found.parameters, trained, found.item, found.files, found.config)


def _head(cfg: RunConfig, width: int) -> int:
    """Weights of the reward head."""
    from pgtg.models.reward import HeadSpec, head_size

    return head_size(width, HeadSpec.of(cfg.reward))


def _tiny_t5(cfg: RunConfig) -> ModelSize:
    from pgtg.data.worlds.newswire import vocabulary
    from pgtg.models.tiny.t5 import build

    assert cfg.policy.tiny_t5 is not None and cfg.data.newswire is not None
    model, tokenizer = build(vocabulary(cfg.data.newswire), cfg.policy.tiny_t5, 0)
    number = sum(p.numel() for p in model.parameters())
    return ModelSize(number, number, FLOAT32, _text_bytes(model, tokenizer), model.config)


WORDS = [f"word{i}" for i in range(1000)]  # about as many as small data of one's own have


def _tiny_lm(cfg: RunConfig) -> ModelSize:
    from pgtg.data.worlds.reviews import vocabulary
    from pgtg.models.tiny.lm import build_causal

    assert cfg.policy.tiny_lm is not None
    words = vocabulary(cfg.data.reviews) if cfg.data.reviews is not None else WORDS
    model, tokenizer = build_causal(words, cfg.policy.tiny_lm, 0)
    number = sum(p.numel() for p in model.parameters())
    trained = 0 if cfg.policy.adaptor is not None else number
    return ModelSize(number, trained, FLOAT32, _text_bytes(model, tokenizer), model.config)


def _text_bytes(model: Any, tokenizer: Any) -> float:
    """About the bytes of tokenizer and configs, as they are written."""
    vocabulary = sum(len(word) + 12 for word in tokenizer.get_vocab())
    return float(vocabulary + len(model.config.to_json_string()) + 2000)


def _pretrained(path: str | None, item: int, layers: int | None = None) -> ModelSize | None:
    """A model, or its first layers, from its config alone; None if that is not on this machine."""
    config = model_config(path)
    if config is None or path is None:
        return None
    number = _parameters(config, layers)
    return ModelSize(number, number, item, _files(path), config)


def _files(path: str) -> float:
    """Bytes of a model folder without its weights."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return FILES
    patterns = ("*.json", "*.model", "*.txt", "*.jinja")
    return float(sum(file.stat().st_size for name in patterns for file in folder.glob(name)))


def _parameters(config: Any, layers: int | None = None) -> int:
    return sum(p.numel() for p in _empty(config, layers).parameters())


def _empty(config: Any, layers: int | None = None) -> Any:
    """The model, or its first layers, without weights."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoModelForSeq2SeqLM,
        AutoModelForSequenceClassification,
    )

    for name in DEPTHS if layers is not None else ():
        if getattr(config, name, None) is not None:
            setattr(config, name, layers)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    others = {
        "ForMaskedLM": AutoModelForMaskedLM,
        "ForSequenceClassification": AutoModelForSequenceClassification,
    }
    for ending, other in others.items():
        if any(name.endswith(ending) for name in config.architectures or []):
            kind = other
    with torch.device("meta"):
        return kind.from_config(config)


def _trained(policy: PolicyConfig, parameters: int) -> int:
    """Weights that are trained: those of adapters or of the top layers, or all."""
    if policy.lora is not None:
        return _adapters(policy.path, policy.lora.rank)
    config = model_config(policy.path) if policy.trainable_layers is not None else None
    if config is None:
        return parameters
    depth = next(getattr(config, name) for name in DEPTHS if getattr(config, name, None))
    below = max(depth - (policy.trainable_layers or 0), 0)
    return parameters - _parameters(model_config(policy.path), below)


def _adapters(path: str | None, rank: int) -> int:
    """Weights of low-rank adapters, from the model's config; a tiny model's are not counted."""
    from pgtg.models.lora import trained_weights

    config = model_config(path)
    return 0 if config is None else trained_weights(_empty(config), rank)


def model_config(path: str | None) -> Any:
    """A Transformers config from a folder or the hub's cache; None if it is in neither."""
    if path is None:
        return None
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except OSError:
        if Path(path).expanduser().is_dir():
            raise
        return None


def _width(config: Any) -> int:
    text = config.get_text_config()
    return int(getattr(text, "hidden_size", None) or text.d_model)
