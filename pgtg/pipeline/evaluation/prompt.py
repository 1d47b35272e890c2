"""Evaluation of prompts: candidates ranked on the dev split, the best ones on the split asked for.

A system is a line of the run (the method, its controls) or a baseline that needs no training. Two
figures are told apart: "best" and "top" are of the search, all prompts that a line had judged with
the policy's own; "policy" and "policy_top" are of prompts that the kept policy writes when asked at
the end (sampled and greedy), whatever was judged before. Every candidate with its scores is kept
(`samples_candidates.jsonl`); test data is read here only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from pgtg.config import RunConfig
from pgtg.data.generations import read_generations
from pgtg.data.worlds import reviews
from pgtg.judges.candidate import Candidate
from pgtg.judges.record import TABLE, read_judged
from pgtg.judges.template import Prompt
from pgtg.methods import method_of
from pgtg.methods.fresh import prompt_task
from pgtg.models.codec import Codec
from pgtg.models.generate import Decoding
from pgtg.models.reward import load_reward_model
from pgtg.ops.sampling import derive_seed
from pgtg.pipeline.context import Context
from pgtg.pipeline.evaluation.asked import (
    Asked,
    Ranked,
    drawn_curve,
    found_by_search,
    has_found,
    search_results,
)
from pgtg.pipeline.evaluation.system import Results, Rows, System
from pgtg.pipeline.findings import show_prompts
from pgtg.pipeline.stages.improve import kept_policy
from pgtg.pipeline.stages.match import SPENDING, judged_prompts
from pgtg.runs.folder import Artifact, content_hash
from pgtg.tasks.prompt import PromptTask
from pgtg.types import Labelled, TokenIds

DEV = {"validation": "dev"}  # other names of splits
OPTIMUM = "optimum"  # of the generated world, found by search over its words
RESTARTS = 3  # of that search
NO_FILE = "no such file in this data set; give it as data.splits.{split}"


class PromptEvaluation:
    """Accuracy and gap score of a run's best prompts, and of the data set's baselines."""

    def __init__(self, cfg: RunConfig):
        assert cfg.prompt is not None
        self.options = cfg.prompt

    def systems(self, ctx: Context) -> list[System]:
        """The method, its controls, and the baselines that need no training."""
        rounds = len(ctx.task.segments())
        found = []
        for control in ("", *ctx.cfg.method.alongside):
            method, policy, parents = method_of(ctx.cfg, control), None, []
            if method.search is not None:
                parents = [ctx.artifact(0, "improve", control=control)]
                policy = parents[0].path
            elif "improve" in method.stages:
                _, policy, artifact = kept_policy(ctx, rounds, control)
                parents = [artifact]
            sampled = [ctx.artifact(i, "sample", control=control) for i in range(rounds)]
            if "sample" in method.stages:
                parents += sampled
            parents += _tables(ctx, control)
            name = control or ctx.cfg.method.name
            found.append(System(name, policy, parents, control))
        start = ctx.parents(0)
        found += [System(name, None, start, name) for name in self.options.baselines]
        if ctx.cfg.data.reviews is not None:
            found.append(System(OPTIMUM, None, start, OPTIMUM))
        return found

    def unavailable(self, ctx: Context, split: str) -> str | None:
        return None  # prompts are ranked on dev, and n/a stands in the column of the split

    def depends_on(self, ctx: Context) -> Mapping[str, Any]:
        return ctx.settings("evaluate")

    def results(self, ctx: Context, system: System, split: str) -> tuple[Results, dict[str, Rows]]:
        """Results and rows: "best", "policy" (one a text) and "candidates" (one a prompt)."""
        task, split = prompt_task(ctx), DEV.get(split, split)
        examples = task.labelled(split)
        results: Results = {
            "system": system.name,
            "split": split,
            "examples": 0 if examples is None else len(examples),
            "data": content_hash([[e.id, e.text, e.label] for e in examples or []]),
            "metrics": [{"metric": "accuracy", "judge": dict(task.judge.describe())}],
            "absent": {},
            "decodings": {},
        }
        asked = Asked(task)  # of the judge, to find and to test prompts
        if system.name == OPTIMUM:
            ranked = self._optimum(ctx, asked)
            self._test(task, ranked, split, results, asked)
            first, rows = ranked[0][0], [row for _, row in ranked]
        elif system.name in self.options.baselines:
            first = Candidate(Prompt(""), system.name)
            rows = [{"text": "", "template": system.name} | self._scored(ctx, system.name, "dev")]
            asked.add(1, "dev")
            if examples is not None:
                values = self._baseline(ctx, system.name, split)
                results["decodings"]["best"] = _of(task, values, split)
                asked.add(1, split)
            if system.name == "icl":
                results["texts_with_fewer_demonstrations"] = _report_left_out(ctx, split)
        else:
            judged: dict[tuple[int, ...], float] = {}
            found = system.policy if (system.policy and has_found(system.policy)) else None
            if found is not None:
                ranked = self._ranked(task, found_by_search(found, 2 * self.options.candidates))
            else:
                judged = _judged(ctx, system.control)
                ranked = self._candidates(ctx, system, judged)
            asked.add(len(ranked), "train", "dev")
            self._test(task, ranked, split, results, asked)
            first, rows = ranked[0][0], [row for _, row in ranked]
            if found is not None:
                results["search"] = search_results(ctx, system.control, found, len(rows))
            elif judged:
                results["search"] = self._search(ctx, system, rows, judged)
        searched = results.get("search", {}).get("judged_sequences", 0)
        results["judged_sequences_in_all"] = searched + asked.sequences
        if examples is None:  # never another split in its place
            results["absent"]["accuracy"] = NO_FILE.format(split=split)
        results["texts_cut"] = _report_cut(ctx, first, split)
        samples: dict[str, Rows] = {"candidates": rows}
        for name in ("best", "policy"):
            per_example = results["decodings"].get(name, {}).pop("rows", None)
            if per_example is not None:
                samples[name] = per_example
        results["best_prompt"] = rows[0]
        if own := _own(rows):
            results["policy_prompt"] = own[0]
        return results, samples

    def _candidates(
        self, ctx: Context, system: System, judged: Mapping[tuple[int, ...], float]
    ) -> list[Ranked]:
        """Distinct prompts, best dev score first: the judge's favourites so far, and of the kept
        policy samples and its greedy prompt ("policy": whether it is one of these)."""
        task, options = prompt_task(ctx), self.options
        written: set[tuple[int, ...]] = set()
        ranked = sorted(judged, key=lambda ids: -judged[ids])
        own = "improve" in method_of(ctx.cfg, system.control).stages
        chosen = dict.fromkeys(ranked[: options.candidates * (1 if own else 2)], "judged")
        codec = None
        if own:
            lm, codec = ctx.load_start() if system.policy is None else ctx.load(system.policy)
            ctx.to_read(lm)
            for how, number in ((ctx.sampling(), options.candidates), (ctx.greedy(), 1)):
                for ids in _generate(ctx, lm, codec, number, how):
                    chosen.setdefault(tuple(ids), "greedy" if how.greedy else "sampled")
                    written.add(tuple(ids))
        codec = codec or ctx.load_start()[1]
        ranked = self._ranked(task, _written(task, codec, chosen))
        return [(one, row | {"policy": tuple(row["ids"]) in written}) for one, row in ranked]

    def _optimum(self, ctx: Context, asked: Asked) -> list[Ranked]:
        """The generated world's best prompt under the judge, by coordinate ascent."""
        task, world = prompt_task(ctx), ctx.cfg.data.reviews
        assert world is not None

        def judge(prompts: list[reviews.Words]) -> list[float]:
            asked.add(len(prompts), "train")
            given = [Prompt(" ".join(words)) for words in prompts]
            return task.gaps(given, "train").mean(-1, dtype=np.float64).tolist()

        words = reviews.candidates(world)
        length = ctx.cfg.sample.max_new_tokens
        best, _ = reviews.optimum(judge, words, length, world.seed, RESTARTS)
        codec = ctx.load_start()[1]
        ids = codec.tokenizer.convert_tokens_to_ids(list(best))
        assert isinstance(ids, list)
        asked.add(1, "train", "dev")
        return self._ranked(task, _written(task, codec, {tuple(ids): "coordinate ascent"}))

    def _ranked(self, task: PromptTask, chosen: Sequence[Ranked]) -> list[Ranked]:
        """Candidates and their rows, with their scores now, best on dev first."""
        candidates, rows = [one for one, _ in chosen], [row for _, row in chosen]
        for split in ("train", "dev"):
            values = task.answers(candidates, split)
            for row, one in zip(rows, values, strict=True):
                row |= {f"{split}_{k}": v for k, v in _means(task, one, split).items()}
        ranked = list(zip(candidates, rows, strict=True))
        return sorted(ranked, key=lambda one: _order(one[1]))

    def _test(
        self,
        task: PromptTask,
        ranked: Sequence[Ranked],
        split: str,
        results: Results,
        asked: Asked,
    ) -> None:
        """Score what leads on the dev split, of all candidates and of the policy's own prompts, on
        the split asked for."""
        if task.labelled(split) is None:
            return
        rows = [row for _, row in ranked]
        lists = {"": rows[: self.options.tested], "policy": _own(rows)[: self.options.tested]}
        tested = [row for own in lists.values() for row in own]
        both = [(one, row) for one, row in ranked if any(row is other for other in tested)]
        leading = [row for _, row in both]
        asked.add(len(leading), split)
        values = task.answers([one for one, _ in both], split)
        for row, one in zip(leading, values, strict=True):
            row |= {f"{split}_{name}": value for name, value in _means(task, one, split).items()}
        for name, own in lists.items():
            if not own:
                continue
            place = next(i for i, row in enumerate(leading) if row is own[0])
            results["decodings"][name or "best"] = _of(task, values[place], split)
            top = own[: self.options.top]
            means = {
                key: float(np.mean([row[f"{split}_{key}"] for row in top]))
                for key in ("accuracy", "score")
            }
            # at most so many, for each system: a row that ends with one choice has one
            about = {"decoding": {"prompts": self.options.top}, "prompts": len(top), "mean": means}
            results["decodings"][f"{name}_top" if name else "top"] = about

    def _search(
        self,
        ctx: Context,
        system: System,
        rows: Rows,
        judged: Mapping[tuple[int, ...], float],
    ) -> dict[str, Any]:
        """What the search spent, each prompt counted as often as it was asked for, and how it went.

        Prompts that are only ranked or tested at the end are counted apart.
        """
        spent = Asked(prompt_task(ctx))
        rounds = range(len(ctx.task.segments()))
        for number in rounds:
            for split, prompts in judged_prompts(ctx, number, system.control).items():
                spent.add(prompts, split)
        artifacts = _samples(ctx, system.control)
        curve = _curve(ctx, system.control) if artifacts else drawn_curve(ctx, system.control)
        found = {
            **spent.figures(),
            "distinct_prompts": len(judged),
            "dev_prompts": len(rows),
            "best_train_score": max(judged.values()),
            "last_mean_score": curve[-1]["mean"],
            "curve": curve,
        }
        reward = ctx.artifact(max(rounds), "align", control=system.control)
        if reward.exists() and not system.control:
            model = load_reward_model(reward.file("reward")).to(ctx.device).eval()
            ctx.to_read(*model.language_models)
            codec = ctx.load_start()[1]
            source = codec.encode_source("")[0]
            (values,) = ctx.per_token(model, [source], [rows[0]["ids"]], [0])
            words = [codec.decode([i]) for i in rows[0]["ids"]]
            found["token_rewards"] = list(zip(words, values.tolist(), strict=True))
        return found

    def _baseline(self, ctx: Context, name: str, split: str) -> np.ndarray:
        """[E, C] answers of a template that needs no prompt; `icl` shows demonstrations."""
        task = prompt_task(ctx)
        if name != "icl":
            return task.log_probs([Prompt("")], split, name)[0]
        examples = task.labelled(split)
        assert examples is not None
        shown = _demonstrations(task, ctx.cfg.seed, split)
        return task.scorer(name)([Prompt("")], split, examples, shown)[0]

    def _scored(self, ctx: Context, name: str, split: str) -> dict[str, float]:
        task = prompt_task(ctx)
        means = _means(task, self._baseline(ctx, name, split), split)
        return {f"{split}_{key}": value for key, value in means.items()}

    def show(self, ctx: Context, title: str, split: str, results: Mapping[str, Results]) -> None:
        show_prompts(ctx.log, title, DEV.get(split, split), results)

    def verdicts(self, ctx: Context, splits: Sequence[str]) -> None:
        pass


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Best on dev first, then on train; equals in an order of their own."""
    return -row["dev_score"], -row["train_score"], row.get("ids", []), row["text"]


def _written(task: PromptTask, codec: Codec, chosen: Mapping[tuple[int, ...], str]) -> list[Ranked]:
    """Prompts of the policy's tokens (ids -> where they come from) as the judge reads them."""
    texts = [codec.decode(list(ids)) for ids in chosen]
    prompts = task.prompts([list(ids) for ids in chosen], texts)
    return [
        (Candidate(prompt), {"text": text, "ids": list(ids), "from": origin})
        for prompt, text, (ids, origin) in zip(prompts, texts, chosen.items(), strict=True)
    ]


def _own(rows: Rows) -> Rows:
    """The candidates that the policy itself writes."""
    return [row for row in rows if row.get("policy")]


def _samples(ctx: Context, control: str) -> list[Artifact]:
    made = [ctx.artifact(i, "sample", control=control) for i in range(len(ctx.task.segments()))]
    return [artifact for artifact in made if artifact.exists()]


def _judged(ctx: Context, control: str) -> dict[tuple[int, ...], float]:
    """Distinct prompts that a line has had judged on the training examples, with their scores."""
    found: dict[tuple[int, ...], float] = {}
    for artifact in _samples(ctx, control):
        generations = read_generations(artifact, "train")
        for tokens, score in zip(generations.tokens, generations.scores, strict=True):
            found[tuple(tokens)] = score
    for artifact in _tables(ctx, control):
        found |= read_judged(artifact.file(TABLE), "train")
    return found


def _tables(ctx: Context, control: str) -> list[Artifact]:
    """A line's artifacts that keep what was judged in the course of a training."""
    made = [
        ctx.artifact(i, stage, control=control)
        for i in range(len(ctx.task.segments()))
        for stage in ("align", "improve", "match")
    ]
    return [one for one in made if one.exists() and TABLE in one.manifest()["files"]]


def _curve(ctx: Context, control: str) -> list[dict[str, float]]:
    """After each round: prompts judged on the training examples so far, their best score, and the
    mean of the round's samples."""
    rows, prompts, best = [], 0, -math.inf
    tables = {artifact.path: artifact for artifact in _tables(ctx, control)}
    for number, artifact in enumerate(_samples(ctx, control)):
        made = artifact.manifest()["metrics"]
        best = max(best, made["sample/train_best_score"])
        for stage in ("align", "improve", "match"):
            if found := tables.get(ctx.artifact(number, stage, control=control).path):
                scores = read_judged(found.file(TABLE), "train").values()
                best = max(best, *scores) if scores else best
        stages = [stage for stage in SPENDING if stage != "sample"]
        prompts += judged_prompts(ctx, number, control, stages)["train"]
        prompts += int(made["sample/train_generations"])
        mean = made["sample/train_mean_score"]
        rows.append({"prompts": prompts, "best": best, "mean": mean})
    return rows


def _report_cut(ctx: Context, first: Candidate, split: str) -> dict[str, int]:
    """Texts that the judge reads shortened, by split; said where there are any."""
    task = prompt_task(ctx)
    name = first.template or task.classifier.template
    found = {part: task.cut(first, part) for part in dict.fromkeys(("train", "dev", split))}
    for part, number in found.items():
        if number:
            total, key = len(task.labelled(part) or []), "judge.classifier.max_tokens"
            limit = task.classifier.max_tokens
            if first.tuned is not None:
                key, limit = "method.max_tokens", first.tuned.max_tokens
            ctx.log.warn(f"{name}: {number} of {total} {part} texts are cut to {key}={limit}")
    return found


def _demonstrations(task: PromptTask, seed: int, split: str) -> list[list[Labelled]]:
    """For each query of a split a training example of each class, in the order of the classes."""
    examples, train = task.labelled(split), task.labelled("train")
    assert examples is not None and train is not None
    shown = []
    for example in examples:
        own = derive_seed(seed, "icl", split, example.id)
        order = np.random.default_rng(own).permutation(len(train))
        classes = range(len(task.fewshot.labels))
        shown.append([next(train[i] for i in order if train[i].label == c) for c in classes])
    return shown


def _report_left_out(ctx: Context, split: str) -> dict[str, int]:
    """Texts that the judge reads with fewer demonstrations than classes, by split; said where
    there are any."""
    task, found = prompt_task(ctx), {}
    for part in dict.fromkeys(("dev", split)):
        shown = _demonstrations(task, ctx.cfg.seed, part) if task.labelled(part) else []
        found[part] = task.shown_fewer("icl", part, shown)
        if found[part]:
            ctx.log.warn(
                f"icl: {found[part]} of {len(shown)} {part} texts are shown fewer "
                "demonstrations than there are classes, for want of room: "
                f"judge.classifier.max_tokens={task.classifier.max_tokens}"
            )
    return found


def _generate(
    ctx: Context, lm: Any, codec: Codec, number: int, decoding: Decoding
) -> list[TokenIds]:
    sampler = replace(ctx.sampler(lm, codec), decoding=decoding)
    key = (ctx.cfg.seed, "evaluate", "candidates")
    ((_, found),) = sampler([codec.encode_source("")[0]], ["prompt"], k=number, seed_key=key)
    return found


def _means(task: PromptTask, log_probs: np.ndarray, split: str) -> dict[str, float]:
    """Accuracy [%] and gap score, means over a split's examples."""
    labels = np.array([example.label for example in task.labelled(split) or []])
    gaps = task.gap_of(torch.from_numpy(log_probs), split).double()
    accuracy = 100.0 * (log_probs.argmax(-1) == labels).mean()
    return {"accuracy": float(accuracy), "score": gaps.mean().item()}


def _of(task: PromptTask, log_probs: np.ndarray, split: str) -> dict[str, Any]:
    """A result with its per-example rows, which the caller takes out."""
    examples = task.labelled(split) or []
    gaps = task.gap_of(torch.from_numpy(log_probs), split)
    guesses = log_probs.argmax(-1)
    rows = [
        {"id": e.id, "text": e.text, "label": e.label, "prediction": int(guess)}
        | {"scores": {"accuracy": 100.0 * (int(guess) == e.label), "score": float(gap)}}
        for e, guess, gap in zip(examples, guesses, gaps.tolist(), strict=True)
    ]
    return {
        "decoding": asdict(task.template(task.classifier.template)),
        "mean": _means(task, log_probs, split),
        "rows": rows,
    }
