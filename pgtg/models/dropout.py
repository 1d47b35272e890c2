"""Dropout switched off for good, so that train mode leaves it off as well; layers kept.

Not all of it is in `nn.Dropout` modules: T5, BART and OPT call the function with a rate that they
keep as an attribute, and some layers read theirs from the config at each pass. All three are set,
and so is the noise before a router of experts (Mixtral, Switch). Whole layers are never left out
(`keep_layers`): the keys and values of what was read would lack those of the layers that one pass
skipped, and processes that divide a model would skip different ones.
"""

import copy
from typing import Any

from torch import nn
from transformers import PretrainedConfig

DROPOUTS = (nn.modules.dropout._DropoutNd,)


def silence_dropout(model: Any) -> None:
    """Set all dropout rates of a Transformers model to 0.

    The config that is saved with the model keeps its rates: they are the next training's business.
    """
    quiet: dict[int, PretrainedConfig] = {}
    for module in model.modules():
        if isinstance(module, DROPOUTS):
            module.p = 0.0
        _zero(module)
        if isinstance(vars(module).get("jitter_noise"), float):
            setattr(module, "jitter_noise", 0.0)  # noqa: B010
        config = vars(module).get("config")
        if module is not model and isinstance(config, PretrainedConfig):
            if id(config) not in quiet:
                quiet[id(config)] = copy.deepcopy(config)
                _zero(quiet[id(config)])
            vars(module)["config"] = quiet[id(config)]


def keep_layers(model: Any) -> None:
    """Leave no whole layer out in train mode, as OPT and BART may."""
    for module in model.modules():
        if isinstance(vars(module).get("layerdrop"), float):
            module.layerdrop = 0.0


def _zero(owner: Any) -> None:
    """Set an object's own rates to 0: numbers whose name says drop (dropout, attn_pdrop, ...)."""
    for name, value in vars(owner).items():
        # NLLB-MoE scales by this one in eval mode, where it drops nothing
        if "drop" in name and name != "moe_token_dropout" and isinstance(value, float):
            setattr(owner, name, 0.0)
