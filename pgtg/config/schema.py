"""The config's schema. A key that is not here is refused with the nearest known name.

Defaults and the meaning of each key stand in `conf/`, which is what Hydra composes; the values here
only give the types. `checks.check` collects *all* problems of a composed config before a run.
"""

import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from pgtg.config import endpoints

# what sample.batch_tokens=auto stands for where no GPU's memory is asked [tokens]
BATCH_TOKENS = 32768

# names under which Transformers configs of one or two stacks keep their number of layers
DEPTHS = (
    "num_hidden_layers",
    "num_layers",
    "num_decoder_layers",
    "encoder_layers",
    "decoder_layers",
)

# other names of splits: of files, and in what people type
ALIASES = {
    "validation": ("validation", "valid", "val", "dev"),
    "dev": ("dev", "validation", "valid", "val"),
}


@dataclass
class NewswireConfig:
    """The generated newswire: how much of it, how hard, how noisy."""

    train: int = MISSING
    validation: int = MISSING
    test: int = MISSING
    seed: int = MISSING
    distractors: int = MISSING
    fillers: int = MISSING
    details: float = MISSING
    noise: float = MISSING
    wrong_fact_share: float = MISSING
    tails: int = MISSING


@dataclass
class FlawsConfig:
    """Flaws planted in the targets of real data: how many, and of which kind."""

    share: float = MISSING
    wrong_share: float = MISSING
    ending: str = MISSING
    seed: int = MISSING


@dataclass
class ReviewsConfig:
    """The generated reviews: how much of them, and how hard the search for a prompt is."""

    shots: int = MISSING
    test: int = MISSING
    seed: int = MISSING
    length: int = MISSING
    words: int = MISSING
    strong: int = MISSING
    weak: int = MISSING
    harmful: int = MISSING
    pairs: int = MISSING
    sharpness: float = MISSING


@dataclass
class TemplateConfig:
    """How a classifier LM reads a text, a prompt and the place of its answer."""

    template: str = MISSING
    rendering: str = MISSING
    words: list[str] = MISSING
    instruction: str | None = None


@dataclass
class FewshotConfig:
    """A classification data set: its classes, its few examples, and how a classifier reads it."""

    labels: list[str] = MISSING
    text: list[str] = field(default_factory=lambda: ["text"])
    label: str = "label"
    shots: int = MISSING
    folders: list[str] = field(default_factory=list)
    masked: dict[str, TemplateConfig] = field(default_factory=dict)
    causal: dict[str, TemplateConfig] = field(default_factory=dict)
    label_map: dict[str, str] = field(default_factory=dict)


@dataclass
class ColumnsConfig:
    id: str | None = None
    source: str = "source"
    references: list[str] = field(default_factory=lambda: ["target"])
    chosen: str | None = None
    rejected: str | None = None
    completions: str | None = None
    ranks: str | None = None
    scores: str | None = None
    pairs: str | None = None
    margin: str | None = None
    tools: str | None = None
    spans: str | None = None


@dataclass
class DataConfig:
    """Where examples come from."""

    name: str = MISSING
    path: str | None = None
    subset: str | None = None
    revision: str | None = None
    splits: dict[str, str | None] = field(default_factory=dict)
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    limit: dict[str, int | None] = field(default_factory=dict)
    repeats: dict[str, str] = field(default_factory=dict)
    empty: dict[str, str] = field(default_factory=dict)
    newswire: NewswireConfig | None = None
    flaws: FlawsConfig | None = None
    fewshot: FewshotConfig | None = None
    reviews: ReviewsConfig | None = None
    quoting: str = "auto"
    format: str | None = None
    validation_share: float | None = None
    validation_fold: int = 0
    as_chat: bool = False
    targets: str = "chosen"


@dataclass
class FitConfig:
    """One training: optimiser, length, validation and stopping."""

    updates: int = MISSING
    micro_batch: int = MISSING
    accumulate: int = MISSING
    bucket: int = 0
    optimizer: str = MISSING
    lr: float = MISSING
    weight_decay: float = MISSING
    clip: float = MISSING
    schedule: str = MISSING
    plateau_factor: float = MISSING
    plateau_patience: int = MISSING
    validate_every: int = MISSING
    patience: int = MISSING
    keep: str = MISSING
    checkpoint_every: int = MISSING
    precision: str = MISSING
    gradient_checkpointing: bool = MISSING


@dataclass
class TinyT5Config:
    """The tiny T5 of the embedded default, built here and warm-started by plain MLE."""

    d_model: int = MISSING
    d_ff: int = MISSING
    d_kv: int = MISSING
    heads: int = MISSING
    encoder_layers: int = MISSING
    decoder_layers: int = MISSING
    dropout: float = MISSING
    copy_updates: int = MISSING
    warm_start: FitConfig = field(default_factory=FitConfig)


@dataclass
class AdaptorConfig:
    """A trained MLP between a frozen causal LM's last hidden state and its LM head."""

    width: int = MISSING
    residual: bool = MISSING


@dataclass
class TinyLMConfig:
    """A tiny language model of the generated reviews' words, trained in the run's set-up."""

    d_model: int = MISSING
    layers: int = MISSING
    heads: int = MISSING
    fit: FitConfig = field(default_factory=FitConfig)


@dataclass
class LoraConfig:
    """Low-rank adapters, all that is trained of a model then."""

    rank: int = MISSING
    alpha: float = MISSING
    dropout: float = 0.0
    targets: str = "all-linear"


@dataclass
class PolicyConfig:
    """The policy and how text becomes its input."""

    path: str | None = None
    revision: str | None = None
    dtype: str = MISSING
    trainable_layers: int | None = None
    frozen_cache: float | None = 2.0
    prefix: str = ""
    suffix: str = ""
    target_prefix: str = ""
    max_source_tokens: int = 1024
    max_target_tokens: int = 128
    dropout: bool = MISSING
    tiny_t5: TinyT5Config | None = None
    tiny_lm: TinyLMConfig | None = None
    adaptor: AdaptorConfig | None = None
    lora: LoraConfig | None = None
    start_text: str | None = None


@dataclass
class SampleConfig:
    """How generations are drawn, and of how many sources a round."""

    k: int = 1  # a prompt is drawn once
    sources: int = MISSING
    heldout_sources: int = MISSING
    temperature: float = MISSING
    top_k: int = MISSING
    top_p: float = MISSING
    max_new_tokens: int = MISSING
    batch_tokens: int | str = MISSING
    precision: str = MISSING
    compile: bool = MISSING
    chunk: int = MISSING


@dataclass
class RewardConfig:
    """The token reward model r_phi(s_t, a_t)."""

    path: str | None = MISSING
    revision: str | None = None
    layers: int | None = None
    head: str = MISSING
    bound: str = MISSING
    mlp_width: int = MISSING
    beta: float = MISSING
    granularity: str = MISSING
    segments: str = MISSING
    segment_tokens: int = MISSING
    segment_entropy: float = MISSING
    spread: str = MISSING
    normalize: str = MISSING
    compare_heads: list[str] = MISSING
    score: list[str] = MISSING
    replay: int = MISSING
    trained: str = MISSING
    lora: LoraConfig | None = None
    fit: FitConfig = field(default_factory=FitConfig)


@dataclass
class AggregatorConfig:
    name: str = MISSING
    temperature: float = 2.0
    length_normalized: bool = False


@dataclass
class ClassifierConfig:
    """The frozen classifier LM whose answers a prompt is to improve, and how its gap is scored."""

    path: str | None = None
    revision: str | None = None
    dtype: str = MISSING
    template: str = MISSING
    readout: str = MISSING
    correct: float = MISSING
    wrong: float = MISSING
    share: float = MISSING
    max_tokens: int = MISSING
    tiny: TinyLMConfig | None = None


@dataclass
class JudgeConfig:
    """What every judge's section has; its own options are a subclass."""

    name: str = MISSING

    def problems(self) -> Iterator[str]:
        """What is wrong with the options together, each line after the key's own name."""
        yield from ()


@dataclass
class TextJudgeConfig(JudgeConfig):
    """A judge of texts, each against its references, in worker processes."""

    workers: int | None = None
    reference: str = "as_given"


@dataclass
class ClassifierJudgeConfig(JudgeConfig):
    """A judge of prompts: what a frozen classifier LM makes of them."""

    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)


@dataclass
class RewardModelConfig(JudgeConfig):
    """A judge of texts by a reward model of one number a text."""

    path: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    reads: str = "auto"
    before: str = ""
    between: str = ""
    after: str = ""
    max_tokens: int | None = None
    batch_tokens: int | None = None

    def problems(self) -> Iterator[str]:
        if self.path is None:
            yield "path: no value; give a folder or hub id of a ...ForSequenceClassification"
        if self.reads == "chat" and self.after:
            yield f"after: found {self.after!r}, but the chat template ends a text (judge.reads)"
        if self.reads == "pair" and self.between:
            yield f"between: found {self.between!r}, but judge.reads=pair keeps both texts apart"


@dataclass
class LLMJudgeConfig(JudgeConfig):
    """A judge of texts by a large model behind an OpenAI-compatible endpoint."""

    base_url: str | None = None
    model: str | None = None
    key_env: str | None = "OPENAI_API_KEY"
    mode: str = "rank"
    criteria: str = MISSING
    template: str | None = None
    swap: bool = True
    lowest: float = 1.0
    highest: float = 10.0
    json_schema: bool = True
    request: dict[str, Any] = field(default_factory=dict)
    concurrency: int = 8
    timeout: float = 60.0
    retries: int = 8
    price_input: float | None = None
    price_output: float | None = None

    def problems(self) -> Iterator[str]:
        if self.base_url is None:
            yield "base_url: no value; give the server's address, e.g. https://api.openai.com/v1"
        elif (found := endpoints.problem(self.base_url)) is not None:
            yield f"base_url: {found}"
        if self.model is None:
            yield "model: no value; give the model's name as the server calls it"
        if self.key_env is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", self.key_env):
            yield "key_env: expected the name of a variable, e.g. OPENAI_API_KEY, never the key"
        if not self.lowest < self.highest:
            yield f"highest: found {self.highest}, expected above judge.lowest={self.lowest}"
        for name in self.request:
            if name in ("model", "messages", "response_format", "stream", "n"):
                yield f"request.{name}: the judge sets it itself; leave it out"
            elif re.search("key|secret|password|authori[sz]ation", name, re.IGNORECASE):
                yield f"request.{name}: secrets stand in no config; see judge.key_env"


@dataclass
class MethodConfig:
    """What every method's section has; its own options are a subclass (`methods/options`)."""

    name: str = MISSING
    controls: list[str] | None = MISSING

    @property
    def alongside(self) -> list[str]:
        """The controls to run; `compose` has put the task's own in the place of null."""
        return self.controls or []

    @property
    def own_samples(self) -> float:
        """Generations that policy training samples itself, for each text of an update."""
        return 0

    @property
    def trains_critic(self) -> bool:
        """Whether a second model of the policy's size is trained with it."""
        return False

    @property
    def keeps_start(self) -> bool:
        """Whether training reads the start policy."""
        return False

    @property
    def models(self) -> list[str]:
        """Folders of further models that training reads."""
        return []

    @property
    def own_updates(self) -> int | None:
        """Updates of a method that is done in one round, whatever `schedule` says: a search has 0.

        None: as `schedule` says.
        """
        return None

    def asked(self) -> tuple[int, int] | None:
        """Prompts that it has judged at most, on train and on dev; None: those of `sample`."""
        return None

    def problems(self) -> Iterator[str]:
        """What is wrong with the options together, each line after the key's own name."""
        yield from ()


@dataclass
class ScheduleConfig:
    """The alternation: how long the policy trains, and when the reward model is trained again."""

    unit: str = MISSING
    total: float = MISSING
    retrain_every: float = MISSING
    retrain_until: float = MISSING


@dataclass
class PromptConfig:
    """The search for a prompt: how prompts are compared, chosen, and held against baselines."""

    group: int = MISSING
    first: int = MISSING
    pool: int = MISSING
    fresh: bool = MISSING
    fresh_checks: int = MISSING
    validation_prompts: int = MISSING
    candidates: int = MISSING
    tested: int = MISSING
    top: int = MISSING
    baselines: list[str] = MISSING


@dataclass
class MetricsConfig:
    names: list[str] = MISSING
    sentence_splitter: str = "regex"
    bertscore_model: str | None = None
    bertscore_layers: int | None = None
    tokenizer: str = "default"


@dataclass
class EvaluateConfig:
    splits: list[str] = MISSING
    examples: int | None = None
    decodings: list[str] = field(default_factory=lambda: ["greedy"])
    reference: str = "as_given"
    protocol: str = "pgtg"
    start_policy: bool = False
    diagnose: int = MISSING


@dataclass
class LoggerConfig:
    name: str = MISSING
    project: str = "pgtg"
    entity: str | None = None
    group: str | None = None
    mode: str | None = None


@dataclass
class RunConfig:
    """The whole config of one run."""

    task: str = MISSING
    name: str = MISSING
    seed: int = MISSING
    data_seed: int | None = None
    device: str = MISSING
    tf32: bool = MISSING
    deterministic: bool = MISSING
    threads: int | None = None
    run_dir: str | None = None
    cache: str = MISSING
    keep_rounds: str = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    aggregator: AggregatorConfig = field(default_factory=AggregatorConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    improve: FitConfig = field(default_factory=FitConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    prompt: PromptConfig | None = None
    experiment: str | None = None

    @property
    def compared(self) -> int:
        """Texts that the reward model learns to order at once: a source's, or a group's."""
        return self.sample.k if self.prompt is None else self.prompt.group


OWNED = ("method", "judge")  # sections whose keys are those of the thing that they name


def classifier_of(cfg: RunConfig) -> ClassifierConfig | None:
    """The classifier LM that judges prompts; None where texts are judged."""
    return cfg.judge.classifier if isinstance(cfg.judge, ClassifierJudgeConfig) else None


def judge_model_of(cfg: RunConfig) -> tuple[str, ClassifierConfig | RewardModelConfig] | None:
    """The model that judges, with the section of the config that names it; None without one."""
    if isinstance(cfg.judge, RewardModelConfig):
        return "judge", cfg.judge
    classifier = classifier_of(cfg)
    return None if classifier is None else ("judge.classifier", classifier)


def endpoint_of(cfg: RunConfig) -> str | None:
    """The server that a run sends texts to, to be judged; None where there is none."""
    return cfg.judge.base_url if isinstance(cfg.judge, LLMJudgeConfig) else None


def workers_of(cfg: RunConfig) -> int | None:
    """The judge's worker processes as the config asks for them; None: as cores allow."""
    return cfg.judge.workers if isinstance(cfg.judge, TextJudgeConfig) else 0


def open_schema() -> type:
    """RunConfig as Hydra composes it: owned sections take any key until it is known whose it is."""
    found: list[tuple[str, Any, Any]] = []
    for entry in fields(RunConfig):
        owned = entry.name in OWNED
        default = field(default_factory=dict) if owned else entry
        found.append((entry.name, dict[str, Any] if owned else entry.type, default))
    return make_dataclass("Composed", found)


PLAIN: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    type(None): "null",
    Any: "any value",
}
STAND_INS: dict[Any, Any] = {int: 0, float: 0.0, str: "", bool: False}


def known_keys() -> list[str]:
    """All keys and sections of the config, dotted."""
    return [*_types()]


def expected_type(key: str) -> str | None:
    """What the schema expects at a dotted key, in plain English; None if there is no such key."""
    owner = key.rpartition(".")[0]
    types_at = _types()
    if key in types_at:
        return _plain(types_at[key])
    if get_origin(types_at.get(owner)) is dict:  # a key of a mapping, e.g. limit.train
        return _plain(get_args(types_at[owner])[1])
    return None


def is_open(key: str) -> bool:
    """Whether a dotted key lies in a mapping that takes any key, e.g. data.splits.train."""
    return get_origin(_types().get(key.rpartition(".")[0])) is dict


def stand_in(key: str) -> Any:
    """A value of the right type for a key that has none yet, so that the rest can be checked."""
    kind = _types()[key]
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return [] if get_origin(options[0]) is list else STAND_INS.get(options[0])


def _types() -> Mapping[str, Any]:
    """Type of each key and section of the config, by dotted name, with anybody's own options."""
    from pgtg.config.registry import JUDGES, METHODS, resolve  # it rests on this module

    specs = [("method", spec) for spec in METHODS.specs] + [("judge", s) for s in JUDGES.specs]
    return _types_with(tuple((section, resolve(spec.options)) for section, spec in specs))


@cache  # a plugin's options are seen when they come; type hints are slow to read
def _types_with(options: tuple[tuple[str, type], ...]) -> Mapping[str, Any]:
    found = dict(_walk(RunConfig, ""))
    for section, kind in options:
        found |= _walk(kind, f"{section}.")
    return found


def _walk(section: type, prefix: str) -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(section)
    for entry in fields(section):
        kind = hints[entry.name]
        yield prefix + entry.name, kind
        for option in (kind, *get_args(kind)):
            if is_dataclass(option) and isinstance(option, type):
                yield from _walk(option, f"{prefix}{entry.name}.")


def _plain(kind: Any) -> str:
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_plain(option) for option in get_args(kind))
    if get_origin(kind) is list:
        return "a list [a,b]"
    if get_origin(kind) is dict:
        return "a mapping {key: value}"
    return "a section of keys" if is_dataclass(kind) else PLAIN.get(kind, str(kind))
