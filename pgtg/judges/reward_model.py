"""`judge=reward_model`: the score of a prompt with its completion by a sequence classifier.

Any `AutoModelForSequenceClassification` with one label, as TRL's `RewardTrainer` makes them. What
it reads is `judge.reads`: the chat template's text of the whole conversation, plain text, or a pair
of texts; its one logit is the score, as plain Transformers gives it. A CPU reads one text at a time
(a score is then the text's own to the bit), an accelerator batches of similar length (the last bits
may depend on what else is read). What was scored once is kept on the disk (`memo`).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from jinja2 import TemplateError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pgtg.config import RewardModelConfig, RunConfig
from pgtg.errors import ConfigError, DataError, MissingResourceError, PgtgError
from pgtg.judges.classifier import fingerprint
from pgtg.judges.judge import Columns, Judge
from pgtg.judges.memo import Memo
from pgtg.judges.reference import done
from pgtg.models.chat import ChatCodec
from pgtg.models.codec import Codec
from pgtg.models.loading import load_tokenizer, pair_misfit
from pgtg.models.structure import positions, taken
from pgtg.models.trust import check_folder, load, unloadable
from pgtg.ops.masking import length_sorted, pad
from pgtg.runs.files import content_hash
from pgtg.runs.folder import RunFolder
from pgtg.runs.log import RunLog
from pgtg.runtime.device import pick_device
from pgtg.runtime.precision import judge_dtype
from pgtg.types import Example, TokenIds

BATCH_TOKENS = 16384  # of an accelerator's batch
TYPES = "token_type_ids"
VERSION = 1  # to be raised whenever the same model would score otherwise


@dataclass(frozen=True)
class Row:
    """What the model reads of a prompt and its completion."""

    ids: TokenIds
    types: TokenIds | None  # which text of a pair each token is of

    @property
    def key(self) -> str:
        return hashlib.blake2b(json.dumps([self.ids, self.types]).encode()).hexdigest()[:32]


class RewardModelJudge(Judge):
    """Scores by a reward model.

    Args:
        model: With one label, in eval mode.
        how: What it reads.
        folder: Where scores are kept for other runs; None: in memory.

    Raises:
        ConfigError: `judge.max_tokens` is more than the model has positions.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        how: RewardModelConfig,
        folder: Path | None,
    ):
        self._model, self._tokenizer, self._how = model, tokenizer, how
        self._most = _require_fit(model, tokenizer, how)
        self._fingerprint = fingerprint(model, tokenizer)
        name = content_hash(dict(self.describe()))[:32]
        self._memo = Memo(None if folder is None else folder / f"{name}.sqlite", ())
        self._alone = model.device.type == "cpu" and how.batch_tokens is None
        self._log: RunLog | None = None
        self._cut = self._read = 0

    def __call__(
        self,
        tokens: Sequence[TokenIds],
        texts: Sequence[str],
        examples: Sequence[Example],
        codec: Codec,
    ) -> Future[Columns]:
        chat = isinstance(codec, ChatCodec)
        rows = [self.row(e.source, t, chat=chat) for e, t in zip(examples, texts, strict=True)]
        self._cut, self._read = self._cut + sum(cut for _, cut in rows), self._read + len(rows)
        return done({"score": self.score([row for row, _ in rows])})

    def describe(self) -> Mapping[str, Any]:
        how, device = self._how, self._model.device.type
        return {
            "judge": how.name,
            "version": VERSION,
            "model": self._fingerprint,
            "template": getattr(self._tokenizer, "chat_template", None),
            "reads": [how.reads, how.before, how.between, how.after, self._most],
            "batch_tokens": how.batch_tokens,
            "device": device,
            "threads": torch.get_num_threads() if device == "cpu" else None,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        }

    def look_at(self, examples: Sequence[Example], *, conversations: bool) -> list[str]:
        """One conversation or text is read as all will be.

        Raises:
            ConfigError: There is no chat template for it, or it would leave out an option.
        """
        how = self._how
        framed = [key for key in ("before", "between", "after") if getattr(how, key)]
        if conversations and framed and self._by_template(chat=True):
            raise ConfigError(
                f"judge.{framed[0]}: the data are conversations, which the chat template frames; "
                'leave it "", or give judge.reads=text'
            )
        self.row(examples[0].source, examples[0].target, chat=conversations)
        return []

    def keep_in(self, folder: RunFolder, log: RunLog) -> None:
        self._log = log

    def tell(self) -> None:
        if self._cut and self._log is not None:
            self._log.warn(
                f"judge {self._how.name}: {self._cut} of {self._read} texts lost their beginning "
                f"to {self._most} tokens (judge.max_tokens)"
            )
        self._cut = self._read = 0

    def close(self) -> None:
        self._memo.close()

    # --- what is read

    def _by_template(self, *, chat: bool) -> bool:
        return self._how.reads == "chat" or (chat and self._how.reads == "auto")

    def row(self, source: str, text: str, *, chat: bool) -> tuple[Row, bool]:
        """What the model reads, and whether its beginning was cut.

        Args:
            chat: The source is a conversation's canonical JSON.

        Raises:
            ConfigError: The tokenizer has no chat template.
            DataError: The template refuses the conversation.
        """
        how = self._how
        if self._by_template(chat=chat):
            turns, tools = [{"role": "user", "content": how.before + source + how.between}], None
            if chat:
                whole = json.loads(source)
                turns, tools = whole["messages"], whole.get("tools")
            turns = [*turns, {"role": "assistant", "content": text}]
            written = self._written(turns, tools)
            found: Any = self._tokenizer(written, add_special_tokens=False, verbose=False)
        else:
            prompt = how.before + (_flat(source) if chat else source) + how.between
            whole, second = prompt + text + how.after, None
            if how.reads == "pair":
                whole, second = prompt, text + how.after
            found = self._tokenizer(whole, second, verbose=False)
        return self._fitted(Row(found["input_ids"], found.get(TYPES)))

    def _written(self, turns: list[dict[str, Any]], tools: Any) -> str:
        if not getattr(self._tokenizer, "chat_template", None):
            raise ConfigError(
                f"judge.path={self._how.path}: its tokenizer has no chat template for "
                "conversations; judge.reads=text reads their turns as one text"
            )
        try:
            found = self._tokenizer.apply_chat_template(turns, tools=tools, tokenize=False)
        except (TemplateError, KeyError, TypeError, ValueError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            roles = ", ".join(str(turn.get("role")) for turn in turns)
            raise DataError(
                f"the chat template of judge.path refuses a conversation of {roles}: {first}"
            ) from error
        assert isinstance(found, str)
        return found

    def _fitted(self, row: Row) -> tuple[Row, bool]:
        """A row that is too long loses what follows the special tokens at its beginning."""
        over = len(row.ids) - (self._most or len(row.ids))
        if over <= 0:
            return row, False
        special = {*self._tokenizer.all_special_ids}
        first = len([*takewhile(special.__contains__, row.ids)])
        kept = [*range(min(first, self._most or 0)), *range(first + over, len(row.ids))]
        types = None if row.types is None else [row.types[i] for i in kept]
        return Row([row.ids[i] for i in kept], types), True

    # --- what it says

    def score(self, rows: Sequence[Row]) -> list[float]:
        """The logit of each row; distinct ones that are not known are read.

        Raises:
            PgtgError: A logit is not finite.
        """
        keys = [row.key for row in rows]
        known = {key: self._memo.get(key) for key in dict.fromkeys(keys)}
        own = dict(zip(keys, rows, strict=True))
        unknown = [key for key, value in known.items() if value is None]
        lengths, budget = [len(own[key].ids) for key in unknown], self._how.batch_tokens
        size = 1 if self._alone else budget or BATCH_TOKENS
        for batch in length_sorted(lengths, budget=size):
            names = [unknown[i] for i in batch]
            values = list(self._logits([own[name] for name in names]))
            self._memo.put_all(names, values)
            known |= dict(zip(names, values, strict=True))
        return [float(known[key]) for key in keys]  # pyright: ignore[reportArgumentType]

    @torch.no_grad()
    def _logits(self, rows: Sequence[Row]) -> np.ndarray:
        """float32 [N]: the model's one logit of each row, padded on the right."""
        model: Any = self._model
        with _padded_by(model, {row.ids[-1] for row in rows}) as fill:
            ids, mask = pad([row.ids for row in rows], fill=fill)
            given: dict[str, Tensor] = {"input_ids": ids, "attention_mask": mask.long()}
            if rows[0].types is not None:
                given[TYPES] = pad([row.types or [] for row in rows])[0]
            given = {name: values.to(model.device) for name, values in given.items()}
            found = model(**taken(model, given)).logits[:, 0].float().cpu()
        if not found.isfinite().all():
            kind = f"{type(model).__name__} in {model.dtype}"
            text = self._tokenizer.decode(rows[int((~found.isfinite()).nonzero()[0])].ids)
            raise PgtgError(
                f"judge {self._how.name}: {kind} answers NaN or infinity to {text!r:.80}"
            )
        return found.numpy()


@contextmanager
def _padded_by(model: Any, last: set[int]) -> Iterator[int]:
    """The id that fills padding. A causal model reads its score at the last token that is not this
    one; where its config names none, one is taken that no row ends with.

    Args:
        last: The last tokens of the rows.
    """
    config = model.config.get_text_config()
    own = config.pad_token_id
    fill = next(i for i in range(len(last) + 1) if i not in last) if own is None else own
    config.pad_token_id = fill
    try:
        yield fill
    finally:
        config.pad_token_id = own


def _flat(source: str) -> str:
    """The contents of a conversation's turns, parted by empty lines."""
    turns = json.loads(source)["messages"]
    return "\n\n".join(turn.get("content") or "" for turn in turns)


def open_reward_model(cfg: RunConfig) -> RewardModelJudge:
    """The config's reward model, on the run's device.

    Raises:
        ArtifactError: A folder that is damaged, or not to be trusted.
        ConfigError: It has not one label, or tokenizer and options do not fit it.
        MissingResourceError: It is not there, or lacks weights (a language model without a head).
    """
    how = cfg.judge
    assert isinstance(how, RewardModelConfig) and how.path is not None  # config check
    device = pick_device(cfg.device)
    dtype = getattr(torch, judge_dtype(how.dtype, device))
    options: dict[str, Any] = {"revision": how.revision, "trust_remote_code": False}
    try:
        check_folder(how.path)
        config = AutoConfig.from_pretrained(how.path, **options)
        _require_one_label(how.path, config)
        auto = AutoModelForSequenceClassification
        model = load(how.path, auto, config, dtype=dtype, revision=how.revision)
        tokenizer = AutoTokenizer.from_pretrained(how.path, **options)
    except Exception as error:  # libraries answer odd folders with errors of any kind
        raise unloadable(how.path, "reward model", error) from error
    model.eval().requires_grad_(False)
    torch.nn.Module.to(model, device)
    folder = None if cfg.cache == "off" else Path(cfg.cache).expanduser() / "answers"
    return RewardModelJudge(model, tokenizer, how, folder)


def check(cfg: RunConfig, *, fetch: bool) -> list[str]:
    """What the reward model must be, by its config and tokenizer alone; not one that would have to
    be fetched.

    Raises:
        ConfigError: It has not one label, or tokenizer and options do not fit it.
        MissingResourceError: It is not there.
    """
    how = cfg.judge
    assert isinstance(how, RewardModelConfig) and how.path is not None  # config check
    try:
        tokenizer, config, _ = load_tokenizer(how.path, revision=how.revision, fetch=fetch)
    except MissingResourceError:
        if fetch or Path(how.path).is_dir():
            raise
        return []  # on the hub
    _require_one_label(how.path, config)
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:  # of another kind
        raise ConfigError(f"judge.path={how.path}: {str(error).splitlines()[0]:.200}") from error
    _require_fit(model, tokenizer, how)
    return []


def _require_one_label(path: str, config: Any) -> None:
    """Raises a ConfigError if a model says more of a text than how good it is."""
    if config.num_labels != 1:
        raise ConfigError(
            f"judge.path={path}: its config has {config.num_labels} labels "
            f"({', '.join(map(str, list(config.id2label.values())[:3]))}); a reward model has one"
        )


def _require_fit(
    model: Any, tokenizer: PreTrainedTokenizerBase, how: RewardModelConfig
) -> int | None:
    """Raises a ConfigError if model, tokenizer and options do not fit; the longest row [tokens]."""
    name = f"judge.path={how.path}"
    if (line := pair_misfit(model, tokenizer)) is not None:
        raise ConfigError(f"{name}: {line}")
    if how.reads == "chat" and not getattr(tokenizer, "chat_template", None):
        raise ConfigError(f"judge.reads: found chat, but the tokenizer of {name} has no template")
    limit, asked = positions(model), how.max_tokens
    if limit is not None and (asked or 0) > limit:
        raise ConfigError(f"judge.max_tokens: found {asked}, but {name} has {limit} positions")
    return asked or limit
