"""Whether a model, its tokenizer and what a run asks of them fit: each misfit is one line.

Looked at before a run folder is made, in `--dry-run` and in `pgtg doctor`:

- the tokenizer has tokens of its own (Transformers makes up an empty one where a folder has none),
  and the embeddings have a row for each of them;
- texts have an end token, and an encoder-decoder a start token for its decoder;
- source and generation fit into the model's table of positions, where it has one;
- a left-to-right language model, proved on a probe: a batch with padding, read as the run reads it,
  gives the logits of plain passes over each row, and no token changes what was said before it;
- the reward head's parts have the sizes that it needs.

The probe needs the weights; above PROBED_AT_MOST only config and tokenizer are looked at.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerBase

from pgtg.config import DEPTHS, RunConfig
from pgtg.config.registry import TASKS, method_spec
from pgtg.errors import ConfigError, PgtgError
from pgtg.models.batch import token_batch
from pgtg.models.frozen import layer_list
from pgtg.models.language import LanguageModel
from pgtg.models.loading import load_language_model, load_tokenizer, pair_misfit
from pgtg.models.special_tokens import encode, end_tokens, frame, ordinary
from pgtg.models.structure import layers_of, positions

PROBED_AT_MOST = 4 * 10**9  # bytes of weights that are loaded to probe a model
LAYERDROPS = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")
UNMOVED = 0.5  # share of bfloat16 weights that an update leaves as they are, above which it is said
PRECISE = {torch.float32: 1e-4, torch.float64: 1e-8}  # of the largest logit; others are 16 bits


@dataclass(frozen=True)
class Misfit:
    """One thing that does not fit.

    Args:
        text: Key, what was found, what was expected.
        fix: What fixes it; "" where the text says it.
        fatal: Whether the run cannot be made; else it is only said.
    """

    text: str
    fix: str = ""
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.text}: {self.fix}" if self.fix else self.text


@dataclass(frozen=True)
class Use:
    """A model of a run, and what is asked of it.

    Args:
        key: The config's key that names it.
        path: Folder or hub id.
        revision: Hub revision.
        layers: Only the first n layers are used.
        source_tokens: Longest source [tokens]; 0 where every source is the start text.
        new_tokens: Longest target or generation [tokens].
        writes: Whether it generates texts that end by themselves.
        start_text: What a writer of prompts begins with; None for the end-of-text token.
        heads: Reward heads that read it.
        trained: Learning rate and dtype of its training; None where it is frozen.
        reads_of: Path and revision of the policy whose token ids it reads; None for the policy.
        trained_layers: Only the last n layers are trained.
    """

    key: str
    path: str
    revision: str | None
    layers: int | None
    source_tokens: int
    new_tokens: int
    writes: bool
    start_text: str | None
    heads: tuple[str, ...]
    trained: tuple[float, str] | None
    reads_of: tuple[str, str | None] | None = None
    trained_layers: int | None = None


def uses(cfg: RunConfig) -> list[Use]:
    """The pretrained language models of a run: the policy, and a reward model of its own."""
    policy, reward = cfg.policy, cfg.reward
    if policy.path is None:
        return []
    prompts = not TASKS[cfg.task].sources
    source = 0 if prompts else policy.max_source_tokens
    new = max(cfg.sample.max_new_tokens, 0 if prompts else policy.max_target_tokens)
    heads = (
        (reward.head, *reward.compare_heads)
        if method_spec(cfg.task, cfg.method.name, options=cfg.method).learns_reward
        else ()
    )
    own = bool(heads) and bool(reward.path or reward.layers)
    trained = None if policy.adaptor is not None else (cfg.improve.lr, policy.dtype)
    asked: dict[str, Any] = {"source_tokens": source, "new_tokens": new}
    asked["start_text"] = policy.start_text if prompts else None
    named: dict[str, Any] = {"path": policy.path, "revision": policy.revision}
    writer = Use(
        "policy.path",
        **named,
        layers=None,
        writes=not prompts,
        heads=() if own else heads,
        trained=trained,
        trained_layers=policy.trainable_layers,
        **asked,
    )
    if not own:
        return [writer]
    key = "reward.path" if reward.path else "reward.layers"
    if reward.path:
        named = {"path": reward.path, "revision": reward.revision}
        named["reads_of"] = (policy.path, policy.revision)
    reader = Use(
        key, **named, layers=reward.layers, writes=False, heads=heads, trained=None, **asked
    )
    return [writer, reader]


def check_models(cfg: RunConfig, *, fetch: bool, evaluated: bool = False) -> list[str]:
    """Refuse models that do not fit the run; returns what else is to be said of them.

    Args:
        evaluated: The policy is only evaluated: no reward model reads it, nothing is trained.
        fetch: Whether config and tokenizer may be fetched; weights never are.

    Raises:
        ConfigError: All that does not fit, one line each.
    """
    asked = uses(cfg)
    if evaluated:
        asked = [replace(use, heads=(), trained=None, trained_layers=None) for use in asked[:1]]
    found = [one for use in asked for one in misfits(use, fetch=fetch)]
    if fatal := [str(one) for one in found if one.fatal]:
        raise ConfigError(*dict.fromkeys(fatal))
    return [str(one) for one in found]


def misfits(use: Use, *, fetch: bool = False) -> list[Misfit]:
    """What does not fit of one model; nothing for a model that is not on this machine yet."""
    size = _weights(use)
    if size is None and not (fetch or Path(use.path).is_dir()):
        return []
    try:
        if size is not None and size <= PROBED_AT_MOST:
            lm, tokenizer = load_language_model(
                use.path, revision=use.revision, dtype=(use.trained or (0, "float32"))[1]
            )
            return [*_named(use, lm.model, tokenizer), *_probed(use, lm, tokenizer)]
        tokenizer, config, _ = load_tokenizer(use.path, revision=use.revision, fetch=fetch)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        with torch.device("meta"):
            model = auto.from_config(config)
        return [*_named(use, model, tokenizer)]
    except PgtgError as error:
        lines = getattr(error, "problems", (str(error),))
        return [Misfit(f"{use.key}: {line}") for line in lines]
    except ValueError as error:  # a config of no language model
        reason = str(error).splitlines()[0]
        return [Misfit(f"{use.key}={use.path}: {reason}", "choose another model")]


def _weights(use: Use) -> int | None:
    """Bytes of a model's weights that are on this machine; None where they are not."""
    folder = Path(use.path).expanduser()
    if folder.is_dir():
        return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(use.path, "model.safetensors", revision=use.revision)
    return Path(found).stat().st_size if isinstance(found, str) else None


def _named(use: Use, model: Any, tokenizer: PreTrainedTokenizerBase) -> Iterator[Misfit]:
    """What config, tokenizer and sizes tell; the model may be without memory."""
    if (line := pair_misfit(model, tokenizer)) is not None:
        yield Misfit(f"{use.key}={use.path}: {line}")
        return
    try:
        frame(tokenizer)
    except ConfigError as error:
        yield Misfit(f"{use.key}={use.path}: {error}")
    ends = end_tokens(tokenizer, model.generation_config, model.config)
    yield from _outside(use, model, ends)
    yield from _layers(use, model)
    if use.reads_of is not None:
        yield from _family(use, model, tokenizer)
    if use.writes and not ends:
        fix = f"set eos_token in {use.path}/tokenizer_config.json"
        yield Misfit(f"{use.key}={use.path}: neither tokenizer nor config has an end token", fix)
    rates = {key: getattr(model.config, key, 0) for key in LAYERDROPS}
    if found := [f"{key}={rate:g}" for key, rate in rates.items() if rate]:
        yield Misfit(
            f"{use.key}={use.path}: {', '.join(found)} of its config is taken as 0, no whole layer "
            "is left out in training",
            fatal=False,
        )
    if rate := getattr(model.config, "moe_token_dropout", 0):
        yield Misfit(
            f"{use.key}={use.path}: moe_token_dropout={rate:g} of its config stays whatever "
            "policy.dropout says, since eval mode scales by it: training is noisy",
            fatal=False,
        )
    yield from _positions(use, model, tokenizer)


def _outside(use: Use, model: Any, ends: Sequence[int]) -> Iterator[Misfit]:
    """Tokens that the config names and the embeddings lack: the decoder's first, a text's last."""
    rows = model.get_input_embeddings().weight.shape[0]
    named = {"eos_token_id": ends[0] if ends else None}
    if model.config.is_encoder_decoder:
        named["decoder_start_token_id"] = model.generation_config.decoder_start_token_id
    for key, token in named.items():
        if token is not None and not 0 <= token < rows:
            yield Misfit(
                f"{use.key}={use.path}: {key}={token}, its embeddings have {rows} rows",
                f"set the model's own in {use.path}/config.json and generation_config.json",
            )


def _layers(use: Use, model: Any) -> Iterator[Misfit]:
    """More layers asked for than there are, or top ones of a model that has no list of them."""
    depth = max((getattr(model.config, name, None) or 0 for name in DEPTHS), default=0)
    asked = {"reward.layers": use.layers, "policy.trainable_layers": use.trained_layers}
    for key, number in asked.items():
        if number is not None and 0 < depth < number:
            yield Misfit(f"{key}={number}: {use.path} has {depth}, all are taken", fatal=False)
    if use.trained_layers is not None and not layer_list(model):
        found = f"a {type(model).__name__} has no list of layers, of which some could be trained"
        yield Misfit(f"policy.trainable_layers={use.trained_layers}: {found}", "leave it out")


def _family(use: Use, model: Any, tokenizer: PreTrainedTokenizerBase) -> Iterator[Misfit]:
    """A reward model reads the policy's token ids."""
    assert use.reads_of is not None
    own, config, _ = load_tokenizer(use.reads_of[0], revision=use.reads_of[1])
    if tokenizer.get_vocab() != own.get_vocab():
        yield Misfit(
            f"{use.key}={use.path}: its tokenizer has other tokens than the policy's; token "
            "rewards need one vocabulary, choose a smaller model of the policy's family"
        )
    if model.config.is_encoder_decoder != config.is_encoder_decoder:
        yield Misfit(
            f"{use.key}={use.path}: policy and reward backbone must both be encoder-decoders or "
            "both causal, since they read the same token ids"
        )


def _positions(use: Use, model: Any, tokenizer: PreTrainedTokenizerBase) -> Iterator[Misfit]:
    """Sources and generations against the model's tables of positions."""
    source, new = use.source_tokens, use.new_tokens
    if source == 0:
        start = use.start_text
        source = 1 if start is None else len(encode(tokenizer, start))
    known = bool(use.source_tokens)
    if model.config.is_encoder_decoder:
        reads = {"source": (model.get_encoder(), source), "target": (layers_of(model), new)}
        keys = {"source": "policy.max_source_tokens", "target": NEW}
        for kind, (part, needed) in reads.items():
            limit = positions(part)
            if limit is not None and needed > limit:
                yield Misfit(
                    f"{keys[kind]}={needed}: the {type(part).__name__} of {use.key}={use.path} has "
                    f"{limit} positions",
                    f"set {keys[kind]}={limit} at most",
                )
        return
    limit, needed = positions(layers_of(model)), source + new
    if limit is not None and needed > limit:
        fix = f"set policy.max_source_tokens={limit - new} at most"
        if not known or limit <= new:
            fix = "lower sample.max_new_tokens and policy.max_target_tokens"
        yield Misfit(
            f"{use.key}={use.path}: source and generation take {source} + {new} = {needed} "
            f"positions, a {type(model).__name__} has {limit}",
            fix,
        )
    trained = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is None and isinstance(trained, int) and needed > trained:
        yield Misfit(
            f"{use.key}={use.path}: source and generation take {needed} positions, its config says "
            f"that it was trained on {trained}",
            f"policy.max_source_tokens={max(trained - new, 1)} keeps to these",
            fatal=False,
        )


NEW = "policy.max_target_tokens and sample.max_new_tokens"


# --- with weights


def _probed(use: Use, lm: LanguageModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[Misfit]:
    if line := probe(lm, ordinary(tokenizer), use.heads):
        yield Misfit(f"{use.key}={use.path}: {line}")
    if use.trained is not None and use.trained[1] == "bfloat16":
        share = unmoved(lm, use.trained[0])
        if share > UNMOVED:
            yield Misfit(
                f"policy.dtype=bfloat16 with improve.lr={use.trained[0]:g}: {100 * share:.0f} % of "
                "the weights are too large for an update of that size, which is rounded away",
                "policy.dtype=float32 improve.precision=bf16 keeps the updates",
                fatal=False,
            )


@torch.no_grad()
def probe(lm: LanguageModel, ids: Sequence[int], heads: Sequence[str] = ()) -> str | None:
    """What keeps a model from being read, sampled and trained here; None if nothing does.

    Args:
        lm: In eval mode.
        ids: Ordinary tokens, at least one.
        heads: Reward heads that are to read it.
    """
    some = [ids[(7 * i) % len(ids)] for i in range(9)]
    sources, tokens = [some[:4], some[4:6]], [some[6:9], some[2:4], some[1:2]]
    origin = [0, 1, 1]
    kind = type(lm.model).__name__
    try:
        batch = token_batch(sources, tokens, origin, lm.device)
        states, logits = lm.states(batch), lm.logits(batch)
        rows = [_plain(lm, sources[i], row) for i, row in zip(origin, tokens, strict=True)]
        shorter = _plain(lm, sources[0], tokens[0][:1])
    except PgtgError as error:
        return str(error)
    except Exception as error:  # of any kind: it is the model's own code
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"a {kind} cannot be read as a language model ({reason[:160]}): choose another"
    bound = PRECISE.get(logits.dtype, 0.1) * logits.float().abs().max().item()
    if (rows[0][:1] - shorter[:1]).abs().max().item() > bound:
        return f"a {kind} reads what comes after a token: choose a left-to-right language model"
    apart = [(logits[i, : len(row)].float() - row).abs().max().item() for i, row in enumerate(rows)]
    if not max(apart) <= bound:
        return (
            f"a {kind} in a padded batch gives other logits than alone (by {max(apart):.1e}): "
            "choose another model"
        )
    embedded = lm.model.get_input_embeddings()(batch.tokens).shape[-1]
    if "state_action" in heads and embedded != states.shape[-1]:
        return (
            f"reward.head=state_action compares states and embeddings, of sizes {states.shape[-1]} "
            f"and {embedded} in a {kind}: choose reward.head=paper"
        )
    return None


def _plain(lm: LanguageModel, source: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
    """float32 [T, V]: logits of a row's tokens by one pass of Transformers, alone."""
    if lm.is_encoder_decoder:
        ids = torch.tensor([source], device=lm.device)
        begun = torch.tensor([[lm.start_id, *tokens]], device=lm.device)
        return lm.model(input_ids=ids, decoder_input_ids=begun).logits[0, :-1].float()
    ids = torch.tensor([[*source, *tokens]], device=lm.device)
    return lm.model(input_ids=ids).logits[0, len(source) - 1 : -1].float()


def unmoved(lm: LanguageModel, lr: float) -> float:
    """Share of the weights that an update of size `lr` (Adam's, at most) leaves as they are."""
    same = total = 0
    for parameter in lm.parameters():
        weights = parameter.detach().flatten()[:: max(parameter.numel() // 10_000, 1)]
        same += int(((weights + lr) == weights).sum())
        total += len(weights)
    return same / total
