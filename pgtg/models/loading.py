"""Loading and saving models and tokenizers: Transformers folders, safetensors, no remote code."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from pgtg.config import DEPTHS
from pgtg.errors import ConfigError
from pgtg.models.backends.sharding import weights_of
from pgtg.models.dropout import keep_layers
from pgtg.models.frozen import top_of
from pgtg.models.language import LanguageModel
from pgtg.models.special_tokens import ordinary
from pgtg.models.trust import check_folder, load, unloadable
from pgtg.runs.files import follow_umask, writing
from pgtg.runtime.distributed import first

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


def load_language_model(
    path: str, *, revision: str | None = None, dtype: str = "float32", layers: int | None = None
) -> tuple[LanguageModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer from a Transformers folder or a hub id.

    Args:
        path: Folder or hub id of an encoder-decoder or causal LM.
        revision: Hub revision, pinned in the paper experiments.
        dtype: Name of a torch dtype for the weights.
        layers: Keep only the first n layers (of both stacks of an encoder-decoder).

    Raises:
        ArtifactError: A local folder that is damaged, or not to be trusted (see `untrusted`).
        MissingResourceError: It is not there, or offline, has no safetensors, lacks weights, or is
            custom code.
        ConfigError: Model and tokenizer are no pair.
    """
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    try:
        check_folder(path)
        config = AutoConfig.from_pretrained(path, **options)
        if layers is not None:
            keep_first_layers(config, layers)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = load(path, auto, config, dtype=getattr(torch, dtype), revision=revision)
        keep_layers(model)
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
    except Exception as error:  # libraries answer odd folders with errors of any kind
        raise unloadable(path, "model", error) from error
    require_pair(path, model, tokenizer)
    return LanguageModel(model.eval()), tokenizer


def require_pair(path: str, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises a ConfigError if model and tokenizer of a path are no pair."""
    if (line := pair_misfit(model, tokenizer)) is not None:
        raise ConfigError(f"model {path!r}: {line}")


def pair_misfit(model: Any, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Why a tokenizer cannot be the model's; None if it can."""
    return tokenizer_misfit(tokenizer, model.get_input_embeddings().weight.shape[0])


def tokenizer_misfit(tokenizer: PreTrainedTokenizerBase, rows: int) -> str | None:
    """Why a tokenizer cannot be that of embeddings with so many rows; None if it can."""
    if len(ordinary(tokenizer)) < 2:
        return (
            "its tokenizer has no tokens but special ones, as Transformers makes one up where a "
            "folder has none: save the model's own there (tokenizer.save_pretrained)"
        )
    tokens = max(tokenizer.get_vocab().values()) + 1
    if tokens > rows:
        return (
            f"its tokenizer has {tokens} tokens, its embeddings have {rows} rows: call "
            f"model.resize_token_embeddings({tokens}) and save it again"
        )
    return None


def load_tokenizer(
    path: str, *, revision: str | None = None, fetch: bool = False
) -> tuple[PreTrainedTokenizerBase, Any, GenerationConfig | None]:
    """Tokenizer, config and generation_config (None where there is none) of a model; no weights.

    Args:
        path: Folder or hub id.
        revision: Hub revision.
        fetch: Whether what is not on this machine may be fetched.

    Raises:
        ArtifactError: A local folder that is damaged, or not to be trusted (see `untrusted`).
        MissingResourceError: It is not there, or is custom code.
    """
    options: dict[str, Any] = {"revision": revision, "local_files_only": not fetch}
    try:
        check_folder(path)
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, **options)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **options)
    except Exception as error:  # libraries answer odd folders with errors of any kind
        raise unloadable(path, "tokenizer", error) from error
    try:
        generation = GenerationConfig.from_pretrained(path, **options)
    except (OSError, ValueError):  # most models have no such file
        generation = None
    return tokenizer, config, generation


def keep_first_layers(config: Any, layers: int) -> None:
    """Shorten the config's stacks, so that loading leaves the upper layers out."""
    for name in DEPTHS:
        depth = getattr(config, name, None)
        if isinstance(depth, int):
            setattr(config, name, min(depth, layers))
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[:layers]


def save_language_model(
    lm: LanguageModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """Write a folder that plain `from_pretrained` loads."""
    _write(lm, weights_of(lm.model), tokenizer, folder)


@first
def _write(
    lm: LanguageModel,
    weights: dict[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
) -> None:
    save_folder(lm.model, tokenizer, folder, weights)


def save_folder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write model and tokenizer as Transformers does, with files that follow the umask.

    Args:
        weights: In the place of the model's own, where those are divided among processes.
    """
    with writing(folder):
        model.save_pretrained(folder, state_dict=weights, safe_serialization=True)
        tokenizer.save_pretrained(folder)
        for file in folder.glob("*.safetensors"):
            follow_umask(file)


def train_only_top_layers(lm: LanguageModel, layers: int | None) -> int:
    """Freeze all but the top `layers` layers of the (decoder) stack and the norm after them.

    Embeddings, the encoder and the LM head stay as they are. Backward then stops at the lowest
    trained layer, and the optimiser keeps no state for the rest.

    Returns:
        Number of trained parameters.
    """
    if layers is not None:
        lm.model.requires_grad_(False)
        for part in top_of(lm.model, layers):
            part.requires_grad_(True)
    return sum(p.numel() for p in lm.parameters() if p.requires_grad)
