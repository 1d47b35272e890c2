"""BERTScore F1 by the bert-score package: no idf, no baseline rescaling, in [0, 100].

The model is read from this machine only, never downloaded in the middle of a run, loaded at the
first score and kept loaded. bert-score's functions do the mathematics; what is done around them:

- Batches are formed here, by length and then first appearance. `BERTScorer.score` takes them from a
  Python set, whose order changes with the hash seed, and with it the last bits of the scores.
- Empty texts score 0 here: bert-score asks the tokenizer for
  `build_inputs_with_special_tokens`, which transformers 5 no longer has.
- A folder without tokenizer files is refused: Transformers makes up a tokenizer without a token,
  by which all texts are alike.
- The tokenizer's length limit is lowered to the model's positions where it has none (1e30 overflows
  in the fast tokenizers). Texts that are cut are counted, see `BertScore.describe`.
- Weights are float32 whatever the checkpoint's dtype.

Left out: baseline rescaling (local models have no baseline) and idf.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pgtg.config import MetricsConfig
from pgtg.errors import ConfigError, MissingResourceError

DEFAULT_MODEL, DEFAULT_LAYERS = "roberta-large", 17  # bert-score's choice for English
CHUNK = 256  # examples whose embeddings are in memory together
BATCH = 64  # texts encoded together
_GIVE = "give metrics.bertscore_model=/path/to/model metrics.bertscore_layers=n"


@dataclass
class BertScore:
    """BERTScore F1 against the best reference. Build it by `build_bertscore`.

    Args:
        model: Folder of the encoder, as Transformers saves it.
        label: The model as the user named it.
        layers: Hidden layer whose states are compared.
        device: Torch device; the first GPU if there is one when None.
    """

    model: str
    label: str
    layers: int
    device: str | None = None
    name: str = "bertscore"
    columns: tuple[str, ...] = ("bertscore_f1",)
    scale: str = "[0, 100]"
    cut: set[str] = field(default_factory=set, repr=False)  # texts longer than the model reads

    def describe(self) -> Mapping[str, Any]:
        """As every metric; `truncated_texts` counts the distinct texts cut so far."""
        return {
            "implementation": f"bert-score {version('bert-score')}",
            "transformers": version("transformers"),
            "model": self.label,
            "layers": self.layers,
            "idf": False,
            "rescaled": False,
            "several_references": "the best one",
            "truncated_texts": len(self.cut),
            "scale": self.scale,
        }

    def unread(self, texts: Iterable[str]) -> float:
        return 0.0  # its model's tokenizer knows every script, well or badly

    def score(
        self, texts: Sequence[str], references: Sequence[Sequence[str]]
    ) -> dict[str, list[float]]:
        rows = list(zip(texts, references, strict=True))
        scores: list[float] = []
        for start in range(0, len(rows), CHUNK):
            scores.extend(self._score_chunk(rows[start : start + CHUNK]))
        return {self.columns[0]: scores}

    def _score_chunk(self, rows: Sequence[tuple[str, Sequence[str]]]) -> list[float]:
        scorer = _load(self.model, self.layers, self.device)
        every = dict.fromkeys(text for row in rows for text in (row[0], *row[1]) if text.strip())
        embedded = self._embed(scorer, every)
        return [
            100.0 * max(_f1(embedded.get(text), embedded.get(other)) for other in others)
            for text, others in rows
        ]

    def _embed(self, scorer: Any, texts: Iterable[str]) -> dict[str, tuple[Any, Any]]:
        """For each text its token embeddings [tokens, width] and token weights [tokens]."""
        from bert_score.utils import get_bert_embedding

        lengths = {text: self._length(scorer, text) for text in texts}
        order = sorted(lengths, key=lambda text: -lengths[text])  # stable: ties as they came
        embedded = {}
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            states, mask, weights = get_bert_embedding(
                batch, scorer._model, scorer._tokenizer, _weights(scorer), device=scorer.device
            )
            for row, text in enumerate(batch):
                n = int(mask[row].sum())
                embedded[text] = (states[row, :n].cpu(), weights[row, :n].cpu())
        return embedded

    def _length(self, scorer: Any, text: str) -> int:
        """Length [tokens] before any cut; notes the text when it will be cut."""
        tokens = len(scorer._tokenizer(text.strip(), verbose=False)["input_ids"])
        if tokens > scorer._tokenizer.model_max_length:
            self.cut.add(text)
        return tokens


def _weights(scorer: Any) -> dict[int, float]:
    """Weight per token id: 1, and 0 for the tokens that frame a text."""
    weights: dict[int, float] = defaultdict(lambda: 1.0)
    weights[scorer._tokenizer.sep_token_id] = 0.0
    weights[scorer._tokenizer.cls_token_id] = 0.0
    return weights


def _f1(text: tuple[Any, Any] | None, reference: tuple[Any, Any] | None) -> float:
    """F1 of one pair in [-1, 1]; 0 when one of them is empty."""
    if text is None or reference is None:
        return 0.0
    import torch
    from bert_score.utils import greedy_cos_idf

    sides = []
    for states, weights in (reference, text):  # cloned: the function normalises in place
        mask = torch.ones(1, len(states), dtype=torch.bool)
        sides += [states[None].clone(), mask, weights[None].clone()]
    return float(greedy_cos_idf(*sides)[2])


@lru_cache(maxsize=2)
def _load(model: str, layers: int, device: str | None) -> Any:
    """A BERTScorer, kept loaded: loading costs seconds, scoring a batch does not."""
    from bert_score import BERTScorer

    from pgtg.models.structure import positions
    from pgtg.models.trust import check_folder

    check_folder(model)
    try:
        scorer = BERTScorer(
            model_type=model, num_layers=layers, device=device, use_fast_tokenizer=True
        )
    except (OSError, ValueError, ImportError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise MissingResourceError(f"bertscore cannot load {model}: {reason}; {_GIVE}") from error
    scorer._model.float()
    limit = positions(scorer._model)
    if limit is None:  # relative positions: as long as it was trained on
        limit = getattr(scorer._model.config, "max_position_embeddings", None) or 512
    scorer._tokenizer.model_max_length = min(scorer._tokenizer.model_max_length, limit)
    return scorer


def build_bertscore(model: str | None, layers: int | None, device: str | None = None) -> BertScore:
    """BERTScore with a local model folder, or with a hub model that is in the local cache.

    Raises:
        ConfigError: Only one of model and layers is given, or the model has fewer layers.
        MissingResourceError: Package or model is not on this machine; says what fixes it.
    """
    if (model is None) != (layers is None):
        raise ConfigError(
            "metrics.bertscore_model and metrics.bertscore_layers go together: give both, or none "
            f"for {DEFAULT_MODEL} with {DEFAULT_LAYERS} layers"
        )
    if find_spec("bert_score") is None:
        raise MissingResourceError("bertscore needs the package: run `pip install bert-score`")
    label = model or DEFAULT_MODEL
    folder = _find(label)
    _check(folder, label, layers := layers or DEFAULT_LAYERS)
    return BertScore(str(folder), label, layers, device)


def _find(model: str) -> Path:
    """The model's folder: a local one, else the hub cache's snapshot."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.resolve()
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(model, "config.json")
    except HFValidationError:  # a path that is no folder
        raise MissingResourceError(f"bertscore: no folder {model}; {_GIVE}") from None
    if not isinstance(config, str):
        raise MissingResourceError(
            f"bertscore: the model {model!r} is not on this machine: {_GIVE}, or fetch it once "
            f"online by `hf download {model}`"
        )
    return Path(config).parent


def _check(folder: Path, label: str, layers: int) -> None:
    if not (folder / "config.json").is_file() or not any(
        [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    ):
        raise MissingResourceError(f"bertscore: {label} has no config.json or no weights; {_GIVE}")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    depth = config.get("num_hidden_layers", config.get("num_layers", config.get("encoder_layers")))
    if layers < 1 or (isinstance(depth, int) and layers > depth):
        raise ConfigError(f"metrics.bertscore_layers={layers}: {label} has layers 1 to {depth}")
    if "t5" in str(folder) and "t5" not in str(config.get("model_type")):
        raise MissingResourceError(
            f"bertscore: bert-score takes {folder} for a T5 model because its path contains 't5': "
            "move or link it to another name"
        )
    _check_tokenizer(folder, label, config.get("vocab_size"))


def _check_tokenizer(folder: Path, label: str, rows: Any) -> None:
    from transformers import AutoTokenizer

    from pgtg.models.loading import tokenizer_misfit
    from pgtg.models.trust import check_folder, unloadable

    check_folder(str(folder))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # libraries answer odd folders with errors of any kind
        raise unloadable(str(folder), "tokenizer", error) from error
    if line := tokenizer_misfit(tokenizer, rows if isinstance(rows, int) else 2**31):
        raise ConfigError(f"metrics.bertscore_model={label}: {line}")


def make(cfg: MetricsConfig, device: str | None) -> BertScore:
    return build_bertscore(cfg.bertscore_model, cfg.bertscore_layers, device)
