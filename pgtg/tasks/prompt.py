"""The prompt task: short prompts that make a frozen classifier LM classify well.

There are no targets. The policy writes prompts of fixed length from a start text, the classifier's
gap score on the few training examples is the true preference, and comparisons are drawn from a
pool of judged prompts. A prompt is judged once on a whole split; the random 80 % of a comparison,
accuracies and means are views of that (`judges.memo`). The test split is only
counted before the evaluation.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pgtg.config import (
    FewshotConfig,
    FitConfig,
    PromptConfig,
    RunConfig,
    TemplateConfig,
    classifier_of,
)
from pgtg.data.comparisons import Comparisons, all_at_once, from_pool
from pgtg.data.fewshot import load_fewshot
from pgtg.data.splits import fingerprint
from pgtg.data.tokens import Encoded, encoded
from pgtg.data.worlds import reviews
from pgtg.errors import ConfigError, DataError
from pgtg.judges.candidate import Candidate
from pgtg.judges.classifier import Classifier, load_classifier
from pgtg.judges.finetuned import FineTuned, Tuned
from pgtg.judges.judge import Columns, Judge
from pgtg.judges.memo import PromptScores
from pgtg.judges.reference import done
from pgtg.judges.template import Prompt, Template
from pgtg.models.codec import Codec, PromptCodec
from pgtg.models.loading import load_tokenizer
from pgtg.ops.gap import gap_scores
from pgtg.runs.folder import RunFolder
from pgtg.runs.log import RunLog
from pgtg.runtime.device import pick_device
from pgtg.runtime.precision import judge_dtype
from pgtg.tasks.task import Sampled, examples_hash
from pgtg.training.schedule import segments
from pgtg.types import DataCounts, Example, Generations, Labelled, TokenIds


class PromptTask:
    """Data, judge and comparisons of one prompt search.

    Args:
        cfg: The run's config.
        run_dir: The run's folder, where a classifier made in the set-up stands.

    Raises:
        MissingResourceError: The classifier is not on this machine.
    """

    def __init__(self, cfg: RunConfig, run_dir: Path):
        judge = classifier_of(cfg)
        assert judge and cfg.prompt and cfg.data.fewshot  # config check
        self.cfg, self.run_dir = cfg, run_dir
        self.options: PromptConfig = cfg.prompt
        self.classifier = judge
        self.fewshot: FewshotConfig = cfg.data.fewshot
        self.counts: dict[str, DataCounts] = {}
        self.seen: dict[str, frozenset[bytes]] = {}
        self.remarks: list[str] = []
        self.about = ""
        self._splits: dict[str, list[Labelled] | None] = {}
        self._scores: dict[tuple[str, bool, bool], PromptScores] = {}
        self._kept: tuple[Tuned, FineTuned] | None = None

    @property
    def targets(self) -> None:
        return None

    @property
    def search(self) -> "PromptTask":
        return self

    def open_judge(self) -> None:
        if self.classifier.path is not None:
            self.scorer(self.classifier.template)  # now: if it cannot be, the run refuses to start

    def close(self) -> None:
        for scores in self._scores.values():
            scores.close()

    @property
    def preferences(self) -> Sampled:
        return Sampled(1)

    @property
    def judge(self) -> "GapJudge":
        return GapJudge(self)

    def read(self) -> None:
        evaluated = ("dev" if s == "validation" else s for s in self.cfg.evaluate.splits)
        for split in dict.fromkeys(["train", "dev", *evaluated]):
            self._keep(split)  # test is only counted: hidden labels are found before the search

    def labelled(self, split: str) -> list[Labelled] | None:
        """The examples of a split; None where the data set has no test file.

        Raises:
            DataError: The split is unreadable or empty.
        """
        self._keep(split)
        return self._splits[split]

    def _keep(self, split: str) -> None:
        if split not in self._splits:
            self._splits[split] = self._load(split)

    def _load(self, split: str) -> list[Labelled] | None:
        if self.cfg.data.name == "reviews":
            assert self.cfg.data.reviews is not None
            rows = reviews.generate(self.cfg.data.reviews, self.cfg.data_seed or 0)[split]
            rows = rows[: self.cfg.data.limit.get(split)]
            self.counts[split] = DataCounts(split, len(rows), len(rows))
            return rows
        found = load_fewshot(self.cfg.data, split, self.cfg.data_seed or 0)
        if found is None:
            return None
        rows, self.counts[split] = found
        if not rows:
            raise DataError(f"the {split} split has no examples: check data.path and data.splits")
        self.seen[split] = frozenset(fingerprint(row.text) for row in rows if row.text)
        return rows

    def codec(
        self, tokenizer: Any, is_encoder_decoder: bool, ends: Sequence[int] = ()
    ) -> PromptCodec:
        policy, frame = self.cfg.policy, ("", "", "")
        length = policy.max_target_tokens
        return PromptCodec(
            tokenizer, False, *frame, length, length, tuple(ends), start_text=policy.start_text
        )

    def allowed(self, tokenizer: Any) -> Sequence[int] | None:
        """In the generated world the candidate words; otherwise every token."""
        if self.cfg.data.reviews is None:
            return None
        return tokenizer.convert_tokens_to_ids(reviews.candidates(self.cfg.data.reviews))

    def segments(self) -> list[int]:
        own = self.cfg.method.own_updates
        return segments(self.cfg.schedule, 0) if own is None else [own]

    def keep_in(self, folder: RunFolder, log: RunLog) -> None:
        pass

    def sources(self, examples: Sequence[Example], codec: Codec) -> Encoded:
        return encoded(examples, codec)

    def to_sample(self, round: int) -> dict[str, list[Example]]:
        """One source a prompt, all empty: what differs is the random stream."""
        number = self.options.first if round == 0 else self.cfg.sample.sources
        held = self.cfg.sample.heldout_sources
        parts = {"train": _empty("prompt", number)}
        return parts | ({"heldout": _empty("heldout", held)} if held else {})

    def grouping(self) -> Mapping[str, Any]:
        pool, share = self.options.pool, self.classifier.share
        found: dict[str, Any] = {"k": self.options.group, "pool": pool, "share": share}
        if self.options.fresh:
            found |= {"fresh": True, "fresh_checks": self.options.fresh_checks}
        return found

    def comparisons(
        self, generations: Generations, cfg: FitConfig, seed: int, step: int
    ) -> list[Comparisons]:
        pool, share = self.options.pool, self.classifier.share
        size, k = cfg.micro_batch * cfg.accumulate, self.options.group
        found = from_pool(generations, size, seed, step, k=k, pool=pool, share=share)
        return found.split(cfg.micro_batch)

    def all_comparisons(self, generations: Generations) -> Comparisons:
        return all_at_once(generations)

    def contents(self, split: str) -> str:
        """The few examples judge and rank; the split asked for is only tested on."""
        names = dict.fromkeys(["train", "dev", {"validation": "dev"}.get(split, split)])
        return examples_hash(row for name in names for row in self.labelled(name) or [])

    def heldout(self) -> list[Example]:
        return []

    def target_labels(self, example: Example, tokens: TokenIds) -> list[str] | None:
        return None

    def reference_labels(self, example: Example, tokens: TokenIds) -> list[str] | None:
        return None

    def target_flaws(self, example: Example, tokens: TokenIds) -> list[bool] | None:
        return None

    def prompts(self, tokens: Sequence[TokenIds], texts: Sequence[str]) -> list[Prompt]:
        """Prompts to judge: with their ids where policy and classifier share the vocabulary."""
        if not self._shares_vocabulary:
            return [Prompt(text) for text in texts]
        return [Prompt(text, tuple(ids)) for ids, text in zip(tokens, texts, strict=True)]

    @cached_property
    def _shares_vocabulary(self) -> bool:
        """Compared token by token: one model may have several names, one family several sizes."""
        policy, judge = self.cfg.policy, self.classifier
        if policy.path is None or judge.path is None:
            return False
        tokenizer = load_tokenizer(policy.path, revision=policy.revision)[0]
        return tokenizer.get_vocab() == self._model[1].get_vocab()

    def log_probs(self, prompts: Sequence[Prompt], split: str, template: str = "") -> np.ndarray:
        """float32 [P, E, C] log-probabilities of the label words; memoised."""
        examples = self.labelled(split)
        assert examples is not None
        return self.scorer(template or self.classifier.template)(prompts, split, examples)

    def gaps(self, prompts: Sequence[Prompt], split: str, template: str = "") -> np.ndarray:
        """float32 [P, E] gap scores of prompts on a split's examples."""
        values = torch.from_numpy(self.log_probs(prompts, split, template))
        return self.gap_of(values, split).numpy()

    def gap_of(self, log_probs: torch.Tensor, split: str) -> torch.Tensor:
        labels = torch.tensor([example.label for example in self.labelled(split) or []])
        how = self.classifier
        return gap_scores(log_probs, labels, correct=how.correct, wrong=how.wrong)

    def answers(self, candidates: Sequence[Candidate], split: str) -> np.ndarray:
        """float32 [P, E, C] log-probabilities of the label words under a search's candidates.

        Args:
            candidates: All in one template.
        """
        examples, first = self.labelled(split), candidates[0]
        assert examples is not None
        if first.tuned is not None:
            own = [self._tuned(one.tuned) for one in candidates if one.tuned is not None]
            return np.stack([model.log_probs(examples) for model in own])
        scorer = self.scorer_of(first)
        if first.offset is not None:  # no two are alike, so none is remembered
            classifier = scorer.classifier
            assert isinstance(classifier, Classifier)
            return np.stack([classifier.log_probs_on_top(one, examples) for one in candidates])
        return scorer([candidate.prompt for candidate in candidates], split, examples)

    def cut(self, candidate: Candidate, split: str) -> int:
        """Texts of a split that are read shortened under a candidate."""
        examples = self.labelled(split) or []
        if candidate.tuned is not None:
            rows = self._tuned(candidate.tuned).rows([example.text for example in examples])
            return sum(row.cut for row in rows)
        classifier = self.scorer_of(candidate).classifier
        assert isinstance(classifier, Classifier)
        return classifier.truncated(examples, candidate.prompt)

    def shown_fewer(self, template: str, split: str, demos: Sequence[Sequence[Labelled]]) -> int:
        """Texts of a split for whose demonstrations the classifier has not enough room."""
        classifier = self.scorer(template).classifier
        assert isinstance(classifier, Classifier)
        return classifier.shown_fewer(self.labelled(split) or [], demos)

    def label_ids(self, template: str) -> list[int]:
        """The token of each label word of a template."""
        classifier = self.scorer(template).classifier
        assert isinstance(classifier, Classifier)
        return classifier.label_ids

    def fine_tuned(
        self, kind: str, max_tokens: int, *, layers: int | None = None, seed: int = 0
    ) -> FineTuned:
        """A copy of the classifier with weights that may change, which reads the manual template.

        Args:
            layers, seed: As for `judges.finetuned.FineTuned`.
        """
        classifier = self.scorer("manual").classifier
        assert isinstance(classifier, Classifier)
        model, _ = self._loaded()
        return FineTuned(
            model,
            classifier.renderer,
            classifier.label_ids,
            kind=kind,
            max_tokens=max_tokens,
            layers=layers,
            seed=seed,
        ).to(model.device)

    def _tuned(self, tuned: Tuned) -> FineTuned:
        """The copy of the classifier with trained weights; the last one is kept."""
        if self._kept is None or self._kept[0] != tuned:
            self._kept = tuned, self.fine_tuned(tuned.kind, tuned.max_tokens).load(tuned.path)
        return self._kept[1]

    def scorer_of(self, candidate: Candidate) -> PromptScores:
        """The classifier as it reads a search's candidate."""
        name = candidate.template or self.classifier.template
        return self.scorer(name, edited=candidate.edited, tokens=candidate.tokens)

    def scorer(self, template: str, *, edited: bool = False, tokens: bool = False) -> PromptScores:
        """The memoised classifier with one of the data set's templates.

        Args:
            edited: Prompts take the place of the template's instruction.
            tokens: Prompts are put in as tokens, without white space around them.

        Raises:
            ConfigError: The data set has no such template for this kind of classifier.
        """
        key = (template, edited, tokens)
        if key not in self._scores:
            model, tokenizer = self._model
            spec = self.template(template)
            text, instruction = spec.template, spec.instruction
            if edited:
                text, instruction = text.replace("{instruction}", "{prompt}"), None
            read = Template.parse(text, instruction=instruction, needs_prompt=edited or tokens)
            classifier = Classifier(
                model,
                tokenizer,
                read.tight if tokens else read,
                spec.words,
                rendering="piecewise" if tokens else spec.rendering,
                max_tokens=self.classifier.max_tokens,
                readout=self.classifier.readout,
            )
            cache = None if self.cfg.cache == "off" else Path(self.cfg.cache).expanduser()
            folder = None if cache is None else cache / "answers"
            self._scores[key] = PromptScores(classifier, folder)
        return self._scores[key]

    def template(self, name: str) -> TemplateConfig:
        masked = type(self._model[0]).__name__.endswith("ForMaskedLM")
        kind = "masked" if masked else "causal"
        known = getattr(self.fewshot, kind)
        if name not in known:
            raise ConfigError(
                f"data.fewshot.{kind}: no template '{name}' for a {kind} classifier "
                f"(known: {', '.join(known) or 'none'})"
            )
        return known[name]

    @cached_property
    def _model(self) -> tuple[Any, Any]:
        return self._loaded()

    def _loaded(self) -> tuple[Any, Any]:
        path = self.classifier.path or str(self.run_dir / "start" / "judge")
        device = pick_device(self.cfg.device)
        dtype = judge_dtype(self.classifier.dtype, device)
        model, tokenizer = load_classifier(path, revision=self.classifier.revision, dtype=dtype)
        torch.nn.Module.to(model, device)
        return model, tokenizer


@dataclass(frozen=True)
class GapJudge(Judge):
    """Gap scores of prompts on the training examples: their mean, and each."""

    task: PromptTask

    def __call__(
        self,
        tokens: Sequence[TokenIds],
        texts: Sequence[str],
        examples: Sequence[Example],
        codec: Codec,
    ) -> Future[Columns]:
        per_example = self.task.gaps(self.task.prompts(tokens, texts), "train")
        means = per_example.mean(-1, dtype=np.float64).tolist()
        return done({"score": means, "example_scores": per_example.tolist()})

    def describe(self) -> Mapping[str, Any]:
        options = self.task.classifier
        return dict(self.task.scorer(options.template).classifier.describe()) | {
            "correct": options.correct,
            "wrong": options.wrong,
        }


def make(cfg: RunConfig, run_dir: Path) -> PromptTask:
    return PromptTask(cfg, run_dir)


def _empty(name: str, number: int) -> list[Example]:
    return [Example(f"{name}{i:06d}", "", (), "") for i in range(number)]
