"""What a Transformers model is made of, as far as reading it goes: found out, not known by name.

Some models keep no key-value cache that rows can be picked from (recurrent and hybrid ones, XLNet,
OpenAI-GPT), some have states of another size than their config's `hidden_size` (OPT's projected
embeddings), and some do more to a state than to multiply it by the LM head's rows (Granite divides
the logits, Gemma-2 bounds them). A token or two through the model answer the first two; for the
third the model's own code makes the logits (`own_logits`).
"""

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from pgtg.errors import ConfigError

# what models answer a pass with that they cannot make
ODD = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError)
PLAIN = (DynamicLayer, DynamicSlidingWindowLayer)  # rows can be picked, repeated, right-padded


@dataclass(frozen=True)
class Structure:
    """What a token or two through a model show.

    Args:
        width: Size of a state.
        caches: Whether the decoder's cache is one of keys and values, which can be continued row
            by row, with padding before the rows; else whole sequences are read again for every new
            token.
    """

    width: int
    caches: bool


@dataclass
class Outputs(BaseModelOutputWithPast):
    """Outputs of a part of a model; whatever else another part asks of them is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def layers_of(model: Any) -> nn.Module:
    """The (decoder's) layers with embeddings and final norm, without the LM head."""
    stack = model.get_decoder()
    if not isinstance(stack, PreTrainedModel):  # ModernBERT calls its LM head its decoder
        stack = model
    if stack.get_output_embeddings() is None:
        return stack
    # a whole causal LM, as EncoderDecoderModel holds one: Llama 4's does not name its base right
    inner = stack.base_model
    return inner if inner is not stack else stack.model


def arguments(module: nn.Module) -> frozenset[str]:
    """Names of the arguments that a module's forward takes, as its class declares it."""
    found = inspect.signature(type(module).forward).parameters
    passed_on = any(one.kind is one.VAR_KEYWORD for one in found.values())
    return frozenset([*found, "use_cache"] if passed_on else found)


def taken(module: nn.Module, given: dict[str, Any]) -> dict[str, Any]:
    """Of the arguments given, those that a module's forward takes."""
    names = arguments(module)
    return {name: value for name, value in given.items() if name in names}


def build_of(model: PreTrainedModel) -> tuple[type, str]:
    """Class and config, wherever they were loaded from: models of the same are built alike."""
    config = model.config
    about = {**config.to_dict(), "_name_or_path": None}
    return type(model), f"{config._attn_implementation} {about}"


_known: dict[tuple[type, str], Structure] = {}


@torch.no_grad()
def structure(model: PreTrainedModel) -> Structure:
    """Reads a token or two, once for all models of one class and config.

    Raises:
        ConfigError: The model does not read it as language models do.
    """
    if (key := build_of(model)) not in _known:
        _known[key] = _tried(model)
    return _known[key]


def _tried(model: PreTrainedModel) -> Structure:
    training = model.training
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            return _structure(model)
    except ODD as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"{type(model).__name__} does not read text as language models do ({reason}): "
            "choose another model"
        ) from error
    finally:
        model.train(training)


def _structure(model: Any) -> Structure:
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    seen = torch.ones_like(token)
    stack = layers_of(model)
    given: dict[str, Any] = {"input_ids": token, "use_cache": True}
    if model.config.is_encoder_decoder:
        encoded = model.get_encoder()(token, attention_mask=seen)[0]
        given |= {"encoder_hidden_states": encoded, "encoder_attention_mask": seen}
    out = stack(**taken(stack, given))
    caches = _plain(getattr(out, "past_key_values", None)) and _continues(model, stack, given)
    return Structure(out[0].shape[-1], caches)


def _continues(model: Any, stack: nn.Module, given: dict[str, Any]) -> bool:
    """Whether two tokens on a cache give what they give without one, padding before them or not.

    BART's decoder alone counts the padding, RoBERTa's positions begin behind those that it is
    given, and ProphetNet continues by single tokens only.
    """
    ids = torch.arange(4, device=model.device)[None]
    real = (ids > 0).long()
    alone = stack(**taken(stack, given | {"input_ids": ids[:, 1:]}))[0].float()
    if model.config.is_encoder_decoder:
        ids, parts = ids[:, 1:], [{}, {}]
    else:
        places = (ids - 1).clamp(min=0)
        parts = [
            {"attention_mask": real[:, :2], "position_ids": places[:, :2]},
            {"attention_mask": real, "position_ids": places[:, 2:]},
        ]
    try:
        out = stack(**taken(stack, given | parts[0] | {"input_ids": ids[:, :-2]}))
        more = {"input_ids": ids[:, -2:], "past_key_values": out.past_key_values}
        found = stack(**taken(stack, given | parts[1] | more))[0].float()
    except ODD:
        return False
    return (found - alone[:, 1:]).abs().max().item() <= 0.02 * alone.abs().max().item()


def _plain(cache: Any) -> bool:
    """Whether a cache can be continued row by row, by its kind alone."""
    if type(cache) is EncoderDecoderCache:
        return _plain(cache.self_attention_cache) and _plain(cache.cross_attention_cache)
    return type(cache) is DynamicCache and all(type(layer) in PLAIN for layer in cache.layers)


def own_logits(model: Any, states: Float[Tensor, "N T D"]) -> Float[Tensor, "N T V"]:
    """Logits from an LM's states, by all that its own forward does after its layers."""
    token = torch.zeros(states.shape[:2], dtype=torch.long, device=states.device)
    given: dict[str, Any] = {"input_ids": token, "use_cache": False}
    if model.config.is_encoder_decoder:
        given = {"decoder_input_ids": token, "use_cache": False}
        given["encoder_outputs"] = Outputs(last_hidden_state=states[:, :1])  # read by nobody
    answer = Outputs(last_hidden_state=states)
    with answering([layers_of(model)], lambda *args, **kwargs: answer):
        return model(**taken(model, given)).logits


@torch.no_grad()
def bare_head(model: Any, width: int) -> nn.Linear | None:
    """The LM head, if an LM's logits are its product with the state and nothing else."""
    head = scaled_head(model, width)
    return head[0] if head is not None and head[1] == 1 else None


@torch.no_grad()
def scaled_head(model: Any, width: int) -> tuple[nn.Linear, float] | None:
    """The LM head and c, if an LM's logits are c times its product with the state (T5: 1/sqrt(D)).

    Proved on a probe: states far enough from 0 that a bound or a shift shows.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.in_features != width:
        return None
    spread = torch.linspace(-8, 8, 4 * width, device=head.weight.device, dtype=head.weight.dtype)
    states = spread[torch.arange(4 * width, device=spread.device) * 5 % (4 * width)]
    states = states.view(1, 4, width)
    try:
        own = own_logits(model, states).float()
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return None  # its logits need more of its layers than their last states (ProphetNet)
    found = head(states).float()
    precise = head.weight.dtype in (torch.float32, torch.float64)
    bound = (1e-5 if precise else 1e-2) * max(1.0, own.abs().max().item())

    def gives(factor: float) -> bool:
        return (own - factor * found).abs().max().item() <= bound

    factor = (own * found).sum().item() / max((found * found).sum().item(), 1e-30)
    exact = next((c for c in (1.0, width**-0.5) if gives(c)), factor)
    return (head, exact) if gives(exact) else None


@contextmanager
def answering(modules: Sequence[nn.Module], answer: Callable[..., Any]) -> Iterator[None]:
    """The modules compute nothing inside: `answer` is called in their place."""
    before = [(module, vars(module).get("forward")) for module in modules]
    try:
        for module in modules:
            module.forward = answer
        yield
    finally:
        for module, own in before:
            vars(module).pop("forward", None)
            if own is not None:  # Accelerate's hooks
                module.forward = own


TABLE = re.compile(r"(wpe|position|pos_emb|pos_encoding)")
NO_TABLE = re.compile(r"(relative|rel_|rotary)")


def positions(part: nn.Module) -> int | None:
    """Most tokens that a stack's table of positions holds; None where it has no such table.

    Rotary, relative and ALiBi positions continue beyond any length; how well is another matter.
    """
    sizes = []
    for name, module in part.named_modules():
        if isinstance(module, nn.Embedding) and TABLE.search(name) and not NO_TABLE.search(name):
            # RoBERTa counts from behind the padding's own row, BART and OPT from the third
            unused = getattr(module, "offset", None)
            if unused is None:
                unused = 0 if module.padding_idx is None else module.padding_idx + 1
            sizes.append(module.num_embeddings - unused)
    for name, table in part.named_buffers():  # CTRL, GPT-J: computed once, for so many
        if name.rpartition(".")[2] in ("pos_encoding", "embed_positions"):
            sizes.append(table.shape[0])
    return min(sizes, default=None)
