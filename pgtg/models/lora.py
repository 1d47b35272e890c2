"""Low-rank adapters (LoRA, arXiv:2106.09685) by `peft`: all that is trained of a model that stays.

The adapters are put into the model in place, so that it is read and sampled as before. A saved
adapter is peft's own folder, which `PeftModel.from_pretrained` loads on the same model.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftConfig
from peft import TaskType, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from pgtg.config import LoraConfig
from pgtg.errors import ArtifactError, ConfigError
from pgtg.models.language import LanguageModel
from pgtg.ops.sampling import seeded
from pgtg.runs.files import writing
from pgtg.runs.folder import load_tensors, save_tensors
from pgtg.runtime.distributed import first

LORA_JSON, LORA_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NAME, PREFIX = "default", "base_model.model."  # of an adapter, and of its weights in peft's files


def add_lora(lm: LanguageModel, cfg: LoraConfig, seed: int, key: str) -> None:
    """Put fresh adapters into a model, drawn from `seed` alone; nothing else is trained then.

    At the start they change nothing: B is 0.

    Args:
        key: Section of the config, for errors.

    Raises:
        ConfigError: No layer of the model has a name among the targets.
    """
    config = _config(lm, cfg)
    try:
        with seeded(seed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of peft's own defaults, which are those wanted
            inject_adapter_in_model(config, lm.model, NAME)
    except ValueError as error:
        first_line = str(error).splitlines()[0]
        raise ConfigError(f"{key}.targets: found {cfg.targets}: {first_line}") from error


def has_lora(lm: LanguageModel) -> bool:
    return any(isinstance(part, BaseTunerLayer) for part in lm.model.modules())


def merge_lora(lm: LanguageModel) -> None:
    """Add the adapters to the weights that they stand at, and take them out. None: no change."""
    for parent in list(lm.model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BaseTunerLayer):
                child.merge()  # pyright: ignore[reportCallIssue]
                setattr(parent, name, child.get_base_layer())


@first
def save_lora(lm: LanguageModel, cfg: LoraConfig, base: str, folder: Path) -> None:
    """Write the adapters alone, as peft does.

    Args:
        base: Where the model lies that they belong to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = get_peft_model_state_dict(lm.model, adapter_name=NAME)
    tensors = {f"{PREFIX}{name}": value.contiguous() for name, value in weights.items()}
    with writing(folder):
        config = _config(lm, cfg)
        config.base_model_name_or_path, config.inference_mode = base, True
        config.save_pretrained(str(folder))
    save_tensors(folder / LORA_WEIGHTS, tensors)


def load_lora(lm: LanguageModel, folder: Path) -> None:
    """Put saved adapters into a model that has some of the same shapes.

    Raises:
        ArtifactError: They are of another model or config.
    """
    saved = load_tensors(folder / LORA_WEIGHTS)
    own = get_peft_model_state_dict(lm.model, adapter_name=NAME)
    given = {name.removeprefix(PREFIX): value for name, value in saved.items()}
    shapes = {name: tuple(value.shape) for name, value in own.items()}
    if {name: tuple(value.shape) for name, value in given.items()} != shapes:
        raise ArtifactError(
            f"{folder}: these adapters are of another model or policy.lora than the run's; give "
            "the policy.path and policy.lora that it was started with"
        )
    with torch.no_grad():
        for name, value in own.items():  # views of the parameters
            value.copy_(given[name])


def trained_weights(model: nn.Module, rank: int) -> int:
    """Weights of adapters of a rank on every linear layer but the LM head."""
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    layers = (m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head)
    return sum(rank * sum(layer.weight.shape) for layer in layers)


def _config(lm: LanguageModel, cfg: LoraConfig) -> PeftConfig:
    """peft's form of the options."""
    kind = TaskType.SEQ_2_SEQ_LM if lm.is_encoder_decoder else TaskType.CAUSAL_LM
    return PeftConfig(
        task_type=kind,
        r=cfg.rank,
        lora_alpha=cfg.alpha,  # pyright: ignore[reportArgumentType]  # a scale, any number
        lora_dropout=cfg.dropout,
        target_modules=cfg.targets if cfg.targets == "all-linear" else cfg.targets.split(","),
        fan_in_fan_out=any(isinstance(part, Conv1D) for part in lm.model.modules()),
    )
