"""BERTScore F1: no idf, no baseline rescaling, in [0, 100].

Each token of one text is matched with the most similar token of the other, by the cosine of their
contextual states; precision and recall are the means over the tokens of either text, F1 joins them.
Tokens that frame a text ([CLS], [SEP]) are matched with, but count nothing.

Source: Zhang et al. 2020, arXiv:1904.09675; as the package bert-score 0.3 computes it (a test
compares them). Different from it: the same bits whatever the hash seed (its batches follow the
order of a Python set), an empty text scores 0, and weights are float32 whatever the checkpoint's.
The model is read from this machine only, loaded at the first score and kept loaded. Texts longer
than it reads are cut and counted, see `BertScore.describe`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgtg.config import DEPTHS, MetricsConfig
from pgtg.errors import ConfigError, MissingResourceError

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_MODEL, DEFAULT_LAYERS = "roberta-large", 17  # the paper's choice for English
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
            "implementation": "pgtg",
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
        every = dict.fromkeys(text for row in rows for text in (row[0], *row[1]) if text.strip())
        embedded = self._embed(every)
        return [
            100.0 * max(_f1(embedded.get(text), embedded.get(other)) for other in others)
            for text, others in rows
        ]

    def _embed(self, texts: Iterable[str]) -> dict[str, tuple["Tensor", "Tensor"]]:
        """For each text its tokens' states of norm 1 [tokens, width] and weights [tokens]."""
        import torch

        model, tokenizer, limit = _load(self.model, self.layers, self.device)
        ids = {text: tokenizer(text.strip(), verbose=False)["input_ids"] for text in texts}
        self.cut |= {text for text, tokens in ids.items() if len(tokens) > limit}
        order = sorted(ids, key=lambda text: -len(ids[text]))  # stable: ties as they came
        frame, embedded = [tokenizer.cls_token_id, tokenizer.sep_token_id], {}
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            read = tokenizer(
                [text.strip() for text in batch],
                max_length=limit,
                truncation=True,
                padding=True,
                padding_side="right",
                return_tensors="pt",
            )
            tokens, mask = read["input_ids"], read["attention_mask"]
            with torch.no_grad():
                states = model(tokens.to(model.device), attention_mask=mask.to(model.device))[0]
            for row, text in enumerate(batch):
                n = int(mask[row].sum())
                found = states[row, :n].cpu()
                counts = [token not in frame for token in tokens[row, :n].tolist()]
                embedded[text] = (found / found.norm(dim=-1, keepdim=True), torch.tensor(counts))
        return embedded


def _f1(
    text: tuple["Tensor", "Tensor"] | None, reference: tuple["Tensor", "Tensor"] | None
) -> float:
    """F1 of one pair in [-1, 1]; 0 when one of them is empty."""
    if text is None or reference is None or not text[1].any() or not reference[1].any():
        return 0.0
    similar = text[0] @ reference[0].T
    precision = similar.amax(1)[text[1]].mean().item()
    recall = similar.amax(0)[reference[1]].mean().item()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@lru_cache(maxsize=2)
def _load(folder: str, layers: int, device: str | None) -> tuple[Any, Any, int]:
    """The encoder up to a layer, its tokenizer, and the most tokens that it reads; kept loaded."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    from pgtg.models.loading import keep_first_layers
    from pgtg.models.structure import positions
    from pgtg.models.trust import check_folder, load, unloadable

    try:
        check_folder(folder)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        keep_first_layers(config, layers)
        unread = ("pooler.", "decoder.")
        model = load(folder, AutoModel, config, unread=unread, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # libraries answer odd folders with errors of any kind
        raise unloadable(folder, "BERTScore's model", error) from error
    if config.is_encoder_decoder:
        model = model.get_encoder()
    if tokenizer.pad_token is None:  # any will do, since padding is masked
        tokenizer.pad_token = tokenizer.eos_token
    limit = positions(model)
    if limit is None:  # relative positions: as long as it was trained on
        limit = max(getattr(config, "max_position_embeddings", None) or 0, 0) or 512
    limit = min(tokenizer.model_max_length, limit)
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), tokenizer, limit


def build_bertscore(model: str | None, layers: int | None, device: str | None = None) -> BertScore:
    """BERTScore with a local model folder, or with a hub model that is in the local cache.

    Raises:
        ConfigError: Only one of model and layers is given, or the model has fewer layers.
        MissingResourceError: The model is not on this machine; says what fixes it.
    """
    if (model is None) != (layers is None):
        raise ConfigError(
            "metrics.bertscore_model and metrics.bertscore_layers go together: give both, or none "
            f"for {DEFAULT_MODEL} with {DEFAULT_LAYERS} layers"
        )
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
    from pgtg.models.loading import load_tokenizer, tokenizer_misfit

    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise MissingResourceError(f"bertscore: {label} has no config.json or no weights; {_GIVE}")
    tokenizer, config, _ = load_tokenizer(str(folder))
    depth = next((d for name in DEPTHS if (d := getattr(config, name, None)) is not None), 0)
    if not 1 <= layers <= depth:
        raise ConfigError(f"metrics.bertscore_layers={layers}: {label} has layers 1 to {depth}")
    if line := tokenizer_misfit(tokenizer, getattr(config, "vocab_size", None) or 2**31):
        raise ConfigError(f"metrics.bertscore_model={label}: {line}")


def make(cfg: MetricsConfig, device: str | None) -> BertScore:
    return build_bertscore(cfg.bertscore_model, cfg.bertscore_layers, device)
