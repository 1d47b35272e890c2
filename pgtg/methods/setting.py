"""What methods and stages share of a run: its settings, its task, and its models."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgtg.config import RunConfig
from pgtg.models.adaptor import ADAPTOR_JSON, adapt, load_adaptor, save_adaptor
from pgtg.models.batch import per_token
from pgtg.models.budget import token_budget
from pgtg.models.codec import Codec
from pgtg.models.dropout import silence_dropout
from pgtg.models.frozen import KeptStates
from pgtg.models.generate import Decoding, Sampler, growing_cache
from pgtg.models.language import LanguageModel, reading_passes
from pgtg.models.loading import (
    load_language_model,
    save_language_model,
    train_only_top_layers,
)
from pgtg.models.lora import LORA_JSON, add_lora, has_lora, load_lora, save_lora
from pgtg.ops.sampling import derive_seed
from pgtg.runs.log import RunLog
from pgtg.runtime import distributed
from pgtg.runtime.precision import as_read, read_dtype
from pgtg.tasks.task import Task
from pgtg.types import TokenBatch, TokenIds


@dataclass(frozen=True)
class Setting:
    """What a method works in: it knows no run folder, and makes no artifacts."""

    cfg: RunConfig
    log: RunLog
    task: Task
    device: torch.device

    @cached_property
    def kept_states(self) -> KeptStates | None:
        """Where all models of the run keep what their frozen layers make of texts; None: nowhere.

        With dropout these layers make something else of a text each time.
        """
        policy = self.cfg.policy
        top = policy.adaptor is None and policy.lora is None and policy.trainable_layers is not None
        if not top or policy.dropout or not policy.frozen_cache:
            return None
        return KeptStates(int(policy.frozen_cache * 2**30))

    def start_path(self) -> str:
        """Where the language model lies that the policy starts from."""
        assert self.cfg.policy.path is not None  # config check
        return self.cfg.policy.path

    def sampling(self) -> Decoding:
        """How generations are drawn."""
        s = self.cfg.sample
        return Decoding(False, s.max_new_tokens, s.temperature, s.top_k, s.top_p)

    def greedy(self) -> Decoding:
        return Decoding(True, self.cfg.sample.max_new_tokens)

    def sampler(self, lm: LanguageModel, codec: Codec, *, greedy: bool = False) -> Sampler:
        """How a policy of the run writes: sampled as in `sample`, or greedily.

        Raises:
            ConfigError: Its step cannot be compiled, as `sample.compile` asks.
        """
        decoding, s = self.greedy() if greedy else self.sampling(), self.cfg.sample
        if s.compile:
            lm.require_compiled()
        return Sampler(
            lm, codec.eos_ids, decoding, s.batch_tokens, self.log.warn, compiled=s.compile
        )

    def load_start(self) -> tuple[LanguageModel, Codec]:
        """The policy that the run starts from."""
        lm, codec = self._load_model(self.start_path(), self.cfg.policy.revision)
        adaptor = self.cfg.policy.adaptor
        if adaptor is None:
            return lm, codec
        seed = derive_seed(self.cfg.seed, "adaptor")
        allowed = self.task.allowed(codec.tokenizer)
        adapted = adapt(lm, adaptor.width, seed, residual=adaptor.residual, allowed=allowed)
        return adapted.to(self.device), codec

    def load(self, path: str | Path) -> tuple[LanguageModel, Codec]:
        """A saved policy and its codec."""
        if (Path(path) / LORA_JSON).is_file():
            lm, codec = self.load_start()
            self.choose_trained(lm)
            load_lora(lm, Path(path))
            return lm, codec
        if not (Path(path) / ADAPTOR_JSON).is_file():
            return self._load_model(path, None)
        lm, codec = self.load_start()
        load_adaptor(lm, Path(path))
        return lm, codec

    def _load_model(self, path: str | Path, revision: str | None) -> tuple[LanguageModel, Codec]:
        policy = self.cfg.policy
        lm, tokenizer = load_language_model(str(path), revision=revision, dtype=policy.dtype)
        if not policy.dropout:
            silence_dropout(lm.model)
        lm = lm.to(self.device)
        if self.kept_states is not None:
            lm.keep_frozen(policy.trainable_layers or 0, self.kept_states)
        return lm, self.task.codec(tokenizer, lm.is_encoder_decoder, lm.end_ids)

    def to_read(self, lm: LanguageModel, *more: LanguageModel) -> LanguageModel:
        """Models that will only make passes without gradients, in `sample.precision`; the first."""
        for one in (lm, *more):
            as_read(one, read_dtype(self.cfg.sample.precision, self.device))
        return lm

    def to_decode(self, lm: LanguageModel) -> LanguageModel:
        """`to_read`, of a model that will sample or decode; says what is slow about its cache."""
        if slow := growing_cache(self.to_read(lm)):
            self.log.note_once(slow)
        return lm

    def reading(self, lm: LanguageModel) -> AbstractContextManager[None]:
        """Passes without gradients, in `sample.precision`, of a model that is in training."""
        return reading_passes(lm, read_dtype(self.cfg.sample.precision, self.device))

    def save_policy(self, lm: LanguageModel, codec: Codec, folder: Path) -> None:
        """A Transformers folder, or what is trained alone where the language model is frozen."""
        lora = self.cfg.policy.lora
        if lora is not None:
            save_lora(lm, lora, self.start_path(), folder)
            if distributed.is_first():
                codec.tokenizer.save_pretrained(folder)
        elif self.cfg.policy.adaptor is not None:
            save_adaptor(lm, folder)
        else:
            save_language_model(lm, codec.tokenizer, folder)

    def choose_trained(self, lm: LanguageModel) -> None:
        """Freeze what policy training leaves as it is; put in low-rank adapters, if asked for."""
        lora = self.cfg.policy.lora
        if lora is not None:
            if not has_lora(lm):
                add_lora(lm, lora, derive_seed(self.cfg.seed, "lora"), "policy.lora")
        elif self.cfg.policy.adaptor is None:
            train_only_top_layers(lm, self.cfg.policy.trainable_layers)

    def per_token(
        self,
        value: Callable[[TokenBatch], Tensor],
        sources: Sequence[TokenIds],
        tokens: Sequence[TokenIds],
        origin: Sequence[int],
        *,
        recurring: bool = False,
    ) -> list[np.ndarray]:
        """`value` of every token, in length-sorted batches under the sampling budget.

        Args:
            recurring: Whether these tokens are read again and again in a run.
        """
        budget = token_budget(self.cfg.sample.batch_tokens)
        how: dict[str, Any] = {"device": self.device, "recurring": recurring}

        def values(rows: Sequence[int]) -> list[np.ndarray]:
            own, starts = [tokens[row] for row in rows], [origin[row] for row in rows]
            return per_token(value, sources, own, starts, batch_tokens=budget, **how)

        return distributed.spread(values, range(len(tokens)))
