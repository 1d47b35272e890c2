"""The frozen classifier LM: log-probabilities of label words, given a prompt and texts to classify.

On a CPU batches hold rows of similar length of one prompt, never of two, so what a prompt scores
depends on it and on the list of examples, to the bit, and not on what else was asked. Another list
that holds the same examples, or another order of them, may differ in the last bits.

An accelerator waits for work with so few rows, so there a masked LM reads the rows of up to
`MIXED_PROMPTS` prompts together, sorted by length. What else was asked may then move the last bits
of a log-probability (float32: about 1e-6, tested to 1e-5), as the size of a batch does. The answers
of one call come back in one transfer.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import transformers
from jaxtyping import Float
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pgtg.config import RunConfig, classifier_of
from pgtg.config.registry import nearest
from pgtg.errors import ConfigError, MissingResourceError, PgtgError
from pgtg.judges.candidate import Candidate
from pgtg.judges.readers import Answers, CausalReader, Demos, MaskedReader, VocabularyReader
from pgtg.judges.rendering import Prompt, Rendered, Renderer, Slot, Template
from pgtg.models.backends.linear import onednn_is_faster
from pgtg.models.loading import load_language_model, require_pair, tokenizer_misfit
from pgtg.models.structure import positions
from pgtg.models.trust import check_folder, load, unloadable
from pgtg.ops.masking import length_sorted
from pgtg.runs.files import content_hash
from pgtg.types import Labelled

READOUTS = ("raw", "calibrated")
CONTENT_FREE = ("N/A",)  # Zhao et al. 2021, Sec. 5
BIASES_KEPT = 4096  # prompts whose calibration is remembered, a few bytes each
# keys of a model's config that saving or loading sets, and that change no answer
BOOKKEEPING = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
BATCH_TOKENS, CPU_BATCH_TOKENS = 8192, 256
CPU_LEAD_TOKENS = 4096  # of texts that are read once: what follows them is short, and needs rows
MIXED_PROMPTS = 128  # prompts whose rows are read together where batches are mixed
RENDERERS = 16  # threads at most that tokenise these rows
VERSION = 1  # to be raised whenever the same classifier would answer otherwise


class Classifier:
    """A frozen masked or causal LM that answers by one of C label words.

    readout "raw": log-softmax of the label words' logits. readout "calibrated": contextual
    calibration (Zhao et al. 2021, arXiv:2102.09690) in log space: from each word's log-probability
    its mean over the `calibration` texts, read with the same prompt, is subtracted, and the rest
    normalised again. By default the text is content-free, "N/A". Texts of the train split are the
    better choice for prompts that are no language (batch calibration, Zhou et al. 2023,
    arXiv:2309.17249); a value then depends on these texts too. Either way it never depends on which
    other examples were asked for, so dev and test are not mixed in.

    Args:
        model: In eval mode; its weights are never changed.
        template: Of the model's kind: with {mask} for a masked LM, without it for a causal one.
        words: C label words exactly as they are tokenised, e.g. " great"; each one token.
        rendering: "string" or "piecewise", see `pgtg.judges.rendering`.
        max_tokens: Longest row; sentences are cut to fit.
        batch_tokens: Padded tokens of one forward pass; None for what suits the model's device. On
            a CPU small batches waste no time, and hold rows of one length.
        calibration: Texts for readout "calibrated", read besides the examples for each prompt.
        prefix_cache: Whether a causal LM reads the shared start of rows once.
        cache_bytes: Key-value cache that is kept between prompts; what came first stays.
        mixed: Whether a masked LM reads rows of several prompts in one batch; None: off the CPU. A
            causal LM never does: it reads what prompts share once.

    Raises:
        ConfigError: A word of several tokens, unknown or twice; a template, rendering, readout or
            length that does not fit the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        template: Template,
        words: Sequence[str],
        *,
        rendering: str,
        max_tokens: int,
        readout: str = "raw",
        batch_tokens: int | None = None,
        calibration: Sequence[str] = CONTENT_FREE,
        prefix_cache: bool = True,
        cache_bytes: int = 2**30,
        mixed: bool | None = None,
    ):
        if readout not in READOUTS:
            raise ConfigError(f"readout: there is no {readout!r}{nearest(readout, READOUTS)}")
        _check_kind(model, template)
        _check_length(model, max_tokens)
        ids = torch.tensor(label_ids(tokenizer, words), device=model.device)
        self.template, self.words, self.readout = template, list(words), readout
        self.renderer = Renderer(tokenizer, template, words, mode=rendering, max_tokens=max_tokens)
        self._model, self._tokenizer = model, tokenizer
        self._calibration = list(calibration)
        on_cpu = model.device.type == "cpu"
        self._batch_tokens = batch_tokens or (CPU_BATCH_TOKENS if on_cpu else BATCH_TOKENS)
        self._lead_tokens = batch_tokens or (CPU_LEAD_TOKENS if on_cpu else BATCH_TOKENS)
        self._mixed = template.masked and (not on_cpu if mixed is None else mixed)
        self._causal = None if template.masked else CausalReader(model, ids, cache_bytes)
        self._prefix_cache = prefix_cache and (self._causal is None or self._causal.caches)
        self._reader = self._causal or MaskedReader(model, ids)
        self._vocabulary: VocabularyReader | None = None
        self._biases: dict[Prompt, Tensor] = {}
        self._fingerprint: str | None = None

    def log_probs(
        self, prompt: Prompt, examples: Sequence[Labelled], demos: Demos = None
    ) -> np.ndarray:
        """float32 [E, C]: log-probabilities [nats] over the label words only, of E examples.

        Args:
            demos: Demonstrations shown with each example, in their order (in-context learning).

        Raises:
            ConfigError: Template and prompt alone are longer than `max_tokens`.
            PgtgError: An answer is not finite.
        """
        texts = [example.text for example in examples]
        values = self._log_probs(prompt, texts, demos)
        if self.readout == "calibrated":
            own = values if demos is None and texts == self._calibration else None
            values = (values - self._bias(prompt, demos, own)).log_softmax(-1)
        self._require_finite(prompt, values)
        return values.numpy()

    @property
    def at_once(self) -> int:
        """Prompts that are best asked for in one call of `log_probs_of`."""
        return MIXED_PROMPTS if self._mixed else 1

    def log_probs_of(self, prompts: Sequence[Prompt], examples: Sequence[Labelled]) -> np.ndarray:
        """float32 [P, E, C]: `log_probs` of P prompts, read together where batches are mixed.

        Raises:
            ConfigError: Template and prompt alone are longer than `max_tokens`.
            PgtgError: An answer is not finite.
        """
        if not self._mixed:
            return np.stack([self.log_probs(prompt, examples) for prompt in prompts])
        values = self._together(prompts, [example.text for example in examples])
        if self.readout == "calibrated":
            biases = self._together(prompts, self._calibration).mean(1, keepdim=True)
            values = (values - biases).log_softmax(-1)
        for prompt, own in zip(prompts, values, strict=True):
            self._require_finite(prompt, own)
        return values.numpy()

    def log_probs_on_top(
        self, candidate: Candidate, examples: Sequence[Labelled]
    ) -> Float[np.ndarray, "E C"]:
        """`log_probs` of a prompt's tokens with vectors on top of them.

        Raises:
            ConfigError: As `log_probs`.
            PgtgError: An answer is not finite.
        """
        assert candidate.offset is not None
        prompt, texts = candidate.prompt, [example.text for example in examples]
        vectors = torch.from_numpy(candidate.offset).to(self._model.device)
        with self._reader.offset.added(vectors, block=candidate.block):
            values = self._log_probs(prompt, texts, None)
            if self.readout == "calibrated":
                bias = self._log_probs(prompt, self._calibration, None).mean(0)
                values = (values - bias).log_softmax(-1)
        self._require_finite(prompt, values)
        return values.numpy()

    def word_logits(
        self,
        candidate: Candidate,
        examples: Sequence[Labelled],
        vectors: Float[Tensor, "L D"],
        among: Sequence[Labelled] | None = None,
    ) -> Float[Tensor, "E V"]:
        """Logits of all words at the place of the answer, with gradients to vectors on top of the
        prompt's tokens (`candidate.offset` is not read).

        Args:
            among: Examples of which these are some, for calls that draw others each time: where
                texts stand before the prompt, a causal LM reads those of all of them once.
        """
        self._vocabulary = self._vocabulary or VocabularyReader(self._model)
        rows = self.renderer.render(candidate.prompt, [example.text for example in examples])
        answers: list[tuple[list[int], Tensor]] = []
        if self._causal is not None and self._texts_first:
            texts = [*dict.fromkeys(example.text for example in among or examples)]
            place = {text: i for i, text in enumerate(texts)}
            of = [place[example.text] for example in examples]
            args = self.renderer, texts, rows, of, vectors, self._lead_tokens
            answers += self._causal.words_after_texts(*args, block=candidate.block)
        done = {row for places, _ in answers for row in places}
        left = [i for i in range(len(rows)) if i not in done]
        if left:
            own = [rows[i] for i in left]
            answers += [(left, self._vocabulary.read(own, vectors, block=candidate.block))]
        order = torch.tensor([row for places, _ in answers for row in places]).argsort()
        return torch.cat([found for _, found in answers])[order.to(vectors.device)]

    @property
    def word_embeddings(self) -> Float[Tensor, "V D"]:
        """Rows of the embedding table, one for each token id."""
        table: Any = self._model.get_input_embeddings()
        return table.weight.detach()

    @property
    def label_ids(self) -> list[int]:
        """The token of each label word."""
        return label_ids(self._tokenizer, self.words)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._tokenizer

    def _require_finite(self, prompt: Prompt, values: Tensor) -> None:
        if not values.isfinite().all():
            kind = f"{type(self._model).__name__} in {self._model.dtype}"
            raise PgtgError(f"classifier {kind} answers NaN or infinity to {prompt.text[:80]!r}")

    def truncated(
        self, examples: Sequence[Labelled], prompt: Prompt | None = None, demos: Demos = None
    ) -> int:
        """Number of examples whose sentence is cut under a prompt (the empty one by default)."""
        texts = [example.text for example in examples]
        return sum(row.cut for row in self.renderer.render(prompt or Prompt(""), texts, demos))

    def shown_fewer(self, examples: Sequence[Labelled], demos: Demos) -> int:
        """Number of examples for whose demonstrations there is not enough room."""
        rows = self.renderer.render(Prompt(""), [example.text for example in examples], demos)
        return sum(row.dropped > 0 for row in rows)

    def identity(self, prompt: Prompt) -> Prompt:
        """What of a prompt the numbers depend on; prompts with the same one are the same prompt."""
        return self.renderer.identity(prompt)

    def describe(self) -> dict[str, Any]:
        """All that the numbers depend on, to the bit; the weights and the tokeniser as a hash."""
        self._fingerprint = self._fingerprint or fingerprint(self._model, self._tokenizer)
        device = self._model.device.type
        about = {"mixed": MIXED_PROMPTS} if self._mixed else {}
        if self._causal is not None and self._texts_first:
            about["lead_tokens"] = self._lead_tokens
        return about | {
            "version": VERSION,
            "model": self._fingerprint,
            "template": self.template.text,
            "pieces": [p.name if isinstance(p, Slot) else repr(p) for p in self.template.pieces],
            "words": self.words,
            "rendering": self.renderer.mode,
            "max_tokens": self.renderer.max_tokens,
            "readout": self.readout,
            "calibration": self._calibration if self.readout == "calibrated" else [],
            "batch_tokens": self._batch_tokens,
            "prefix_cache": self._prefix_cache,
            "device": device,
            "threads": torch.get_num_threads() if device == "cpu" else None,
            "linear": "onednn" if device == "cpu" and onednn_is_faster() else "torch",
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        }

    @torch.no_grad()
    def _log_probs(
        self, prompt: Prompt, texts: Sequence[str], demos: Demos
    ) -> Float[Tensor, "E C"]:
        rows = self.renderer.render(prompt, texts, demos)
        answers = list(self._shared(prompt, texts, demos, rows))
        shared = {place for places, _ in answers for place in places}
        left = [i for i in range(len(rows)) if i not in shared]
        return _in_order([*answers, *self._read(rows, left)], len(rows), len(self.words))

    @torch.no_grad()
    def _together(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Float[Tensor, "P E C"]:
        with ThreadPoolExecutor(min(os.cpu_count() or 1, RENDERERS)) as pool:
            parts = list(pool.map(lambda prompt: self.renderer.render(prompt, texts), prompts))
        rows = [row for part in parts for row in part]
        answers = self._read(rows, range(len(rows)))
        found = _in_order(list(answers), len(rows), len(self.words))
        return found.view(len(prompts), len(texts), len(self.words))

    def _read(self, rows: Sequence[Rendered], places: Sequence[int]) -> Answers:
        """Answers of the rows at these places, batch by batch."""
        for batch in length_sorted([len(rows[i].ids) for i in places], budget=self._batch_tokens):
            own = [places[i] for i in batch]
            yield own, self._reader.read([rows[i] for i in own])

    @property
    def _texts_first(self) -> bool:
        """Whether prompts follow texts, which a causal LM reads once for all of them."""
        shares = self._prefix_cache and self.template.takes_prompt
        return shares and self.template.before(Slot.SENTENCE, Slot.PROMPT)

    def _shared(self, prompt: Prompt, texts: Sequence[str], demos: Demos, rows: list) -> Any:
        """Answers of the rows whose start a causal LM need not read for each of them."""
        if self._causal is None or not self._prefix_cache or not self.template.takes_prompt:
            return ()
        if self._texts_first:
            args = self.renderer, texts, demos, rows, self._lead_tokens
            return self._causal.read_after_texts(*args)
        if demos is not None:  # they stand before the prompt, and are each row's own
            return ()
        return self._causal.read_after_prompt(self.renderer, prompt, rows, self._batch_tokens)

    def _bias(self, prompt: Prompt, demos: Demos, known: Tensor | None) -> Float[Tensor, "*E C"]:
        """Mean label log-probability over the calibration texts, for each example's own demos.

        Without demos it is read once per prompt, also for several splits, or not at all if the
        examples are the calibration texts (`known`). It is the same bits anyway.
        """
        if demos is not None:
            n = len(self._calibration)
            texts = [text for _ in demos for text in self._calibration]
            shown = [demo for demo in demos for _ in self._calibration]
            values = self._log_probs(prompt, texts, shown)
            return values.view(len(demos), n, len(self.words)).mean(1)
        key = self.identity(prompt)
        if key not in self._biases:
            while len(self._biases) >= BIASES_KEPT:
                self._biases.pop(next(iter(self._biases)))
            if known is None:
                known = self._log_probs(prompt, self._calibration, None)
            self._biases[key] = known.mean(0)
        return self._biases[key]


def _in_order(
    answers: Sequence[tuple[list[int], Tensor]], rows: int, words: int
) -> Float[Tensor, "N C"]:
    """Log-probabilities on the CPU, in the rows' order, from batches of logits: one transfer."""
    out = torch.empty(rows, words)
    if answers:
        places = [place for own, _ in answers for place in own]
        out[places] = torch.cat([logits for _, logits in answers]).cpu()
    return out.log_softmax(-1)


def label_ids(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[int]:
    """The one token of each label word.

    Raises:
        ConfigError: Fewer than two words; a word of several tokens, unknown, or another word's.
    """
    ids: list[int] = []
    for word in words:
        found = tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(found) != 1:
            pieces = tokenizer.convert_ids_to_tokens(found)
            raise ConfigError(
                f"label word {word!r} is {len(found)} tokens {pieces} for this classifier, not "
                "one: choose another word (a leading space counts)"
            )
        if found[0] == tokenizer.unk_token_id and word != tokenizer.unk_token:
            raise ConfigError(f"label word {word!r} is unknown to this classifier: choose another")
        if found[0] in ids:
            other = words[ids.index(found[0])]
            raise ConfigError(f"label words {other!r} and {word!r} are the same token: change one")
        ids.append(found[0])
    if len(ids) < 2:
        raise ConfigError(f"label words {list(words)}: a classifier needs two or more")
    return ids


def load_classifier(
    path: str, *, revision: str | None = None, dtype: str = "float32"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A masked or causal LM, as its config says, and its tokenizer; in eval mode.

    Raises:
        MissingResourceError: It is not there, or offline, has no safetensors, is custom code, or
            its config names neither a masked nor a causal LM.
    """
    if not check_classifier(path, revision):
        lm, tokenizer = load_language_model(path, revision=revision, dtype=dtype)
        return lm.model.requires_grad_(False), tokenizer
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    kind, weights = AutoModelForMaskedLM, getattr(torch, dtype)
    config = _loaded(path, lambda: AutoConfig.from_pretrained(path, **options))
    model = _loaded(path, lambda: load(path, kind, config, dtype=weights, revision=revision))
    tokenizer = _loaded(path, lambda: AutoTokenizer.from_pretrained(path, **options))
    require_pair(path, model, tokenizer)
    return model.eval().requires_grad_(False), tokenizer


def check(cfg: RunConfig, *, fetch: bool) -> list[str]:
    """What the config's classifier must have before its weights are read.

    Raises:
        ConfigError: Model and tokenizer are no pair.
        MissingResourceError: It is not there, or no classifier.
    """
    judge = classifier_of(cfg)
    if judge is not None and judge.path is not None:
        check_classifier(judge.path, judge.revision)
        check_pair(judge.path, judge.revision)
    return []


def check_classifier(path: str, revision: str | None) -> bool:
    """Whether a classifier is a masked LM (True) or a causal one (False), by its config alone.

    Raises:
        MissingResourceError: It is not there, or neither.
    """
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    check_folder(path)
    config = _loaded(path, lambda: AutoConfig.from_pretrained(path, **options))
    names = list(config.architectures or [])
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        return False
    if not any(name.endswith("ForMaskedLM") for name in names):
        raise MissingResourceError(
            f"classifier {path!r}: its config.json says {names or 'no architecture'}, and a "
            "classifier must be a ...ForMaskedLM, ...ForCausalLM or ...LMHeadModel"
        )
    return True


def check_pair(path: str, revision: str | None) -> None:
    """Hold a classifier's tokenizer against its config, before its weights are read.

    Raises:
        ConfigError: They are no pair.
        MissingResourceError: They are not there.
    """
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    config = _loaded(path, lambda: AutoConfig.from_pretrained(path, **options))
    tokenizer = _loaded(path, lambda: AutoTokenizer.from_pretrained(path, **options))
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if isinstance(rows, int) and (line := tokenizer_misfit(tokenizer, rows)):
        raise ConfigError(f"judge.classifier.path={path}: {line}")


def fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of a model's weights, kind and config, and of its tokeniser."""
    digest = hashlib.blake2b(digest_size=16)
    config = {k: v for k, v in model.config.to_dict().items() if k not in BOOKKEEPING}
    config["attention"] = model.config._attn_implementation
    digest.update(f"{type(model).__name__} {content_hash(config)}".encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    digest.update(f"{state} {sorted(tokenizer.special_tokens_map.items())}".encode())
    return digest.hexdigest()


def _loaded(path: str, load: Callable[[], Any]) -> Any:
    """What `load` returns; whatever keeps it from loading becomes one line."""
    try:
        return load()
    except Exception as error:  # libraries answer odd folders with errors of any kind
        raise unloadable(path, "classifier", error) from error


def _check_kind(model: PreTrainedModel, template: Template) -> None:
    kind = type(model).__name__
    if model.config.is_encoder_decoder:
        raise ConfigError(f"classifier {kind} is an encoder-decoder: give a masked or a causal LM")
    masked = kind.endswith("ForMaskedLM")
    if masked != template.masked:
        raise ConfigError(
            f"template {template.text!r} {'has a' if template.masked else 'has no'} {{mask}}, but "
            f"classifier {kind} is a {'masked' if masked else 'causal'} LM"
        )


def _check_length(model: PreTrainedModel, max_tokens: int) -> None:
    limit = positions(model)
    if max_tokens < 1 or (limit is not None and max_tokens > limit):
        reads = "1 token or more" if limit is None else f"1 to {limit} tokens"
        raise ConfigError(f"max_tokens={max_tokens}: {type(model).__name__} reads {reads}")
