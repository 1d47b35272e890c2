"""Model cards: what was learned from what, how well it does, and how it is loaded."""

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pgtg import __version__
from pgtg.config import RunConfig
from pgtg.explain.runs import Run
from pgtg.export.distil import Fidelity
from pgtg.ops.bounds import BOUNDS
from pgtg.runs.folder import RunFolder, read_json

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PARTS = {"heldout": "held-out sources", "train": "samples that were learned from"}
SHARES = {
    "pair_accuracy": "pairs ordered as they are preferred",
    "log_prob_wins": "baseline: the likelier text under the start policy",
    "longer_wins": "baseline: the longer text",
    "shorter_wins": "baseline: the shorter text",
    "top1_accuracy": "the best text found",
}
AUCS = {"boilerplate": "content above boilerplate", "facts": "right above wrong facts"}


def figures(run: Run, round: int) -> dict[str, float]:
    """How the round's reward model does, as its `aggregate` stage found; empty before that."""
    aggregate = run.folder.artifact("rounds", f"{round:02d}", "aggregate")
    if not aggregate.exists():
        return {}
    found = aggregate.manifest()["metrics"]
    return {name.removeprefix("aggregate/"): value for name, value in found.items()}


def about_run(run: Run, round: int) -> dict[str, Any]:
    """Figures and origin of a reward model, as json."""
    path, revision = run.cfg.reward.path, run.cfg.reward.revision
    if not path:
        path, revision = run.cfg.policy.path, run.cfg.policy.revision
    return {
        "figures": figures(run, round),
        "base_model": hub_id(path) or (Path(path).name if path else None),
        "base_revision": revision,
        **made_by(run.folder),
    }


def made_by(folder: RunFolder) -> dict[str, Any]:
    """Version and commit that made a run, and the version that exports it."""
    path = folder.path / "provenance.json"
    made = read_json(path) if path.is_file() else {}
    version = (made.get("packages") or {}).get("pgtg")
    return {"made_by": {"pgtg": version, "git": made.get("git")}, "exported_by": __version__}


def hub_id(path: str | None) -> str | None:
    """The path, if it names a model or data set of a hub and not a folder here."""
    return path if path and HUB_ID.fullmatch(path) and not Path(path).exists() else None


def header(cfg: RunConfig, pipeline: str, base: str | None, tags: str) -> Iterator[str]:
    """The card's metadata."""
    yield from ("---", f"pipeline_tag: {pipeline}", "library_name: transformers", f"tags: [{tags}]")
    if base is not None:
        yield f"base_model: {base}"
    data = hub_id(cfg.data.path) if cfg.data.name == "hub" else None
    if data is not None:
        yield f"datasets: [{data}]"
    yield from ("---", "", "")


REWARD = """# {name}: token rewards

A reward for each token of a text, learned from preferences between whole texts with pgtg (task
{about.task}, run {about.name}, seed {about.seed}, round {round}; aggregator
`{about.aggregator.name}`{base}).

The logit at the place of a token is the raw output z of its reward head, **before the bound**. The
reward is r = bound(z) with the bound `{about.bound}`:

    {formula}

Prompt tokens have logits too; they were never trained and mean nothing. Only differences within a
text, and between texts of one prompt, were learned.
{lost}
{figures}

```python
import pgtg

pgtg.token_rewards("{name}", ["a prompt"], ["a completion"])  # reads texts as the run did
```

```python
import torch
from transformers import AutoModelForTokenClassification

model = AutoModelForTokenClassification.from_pretrained("{name}").eval()
ids = torch.tensor([prompt_ids + completion_ids])
z = model(input_ids=ids).logits[0, len(prompt_ids) :, 0]
```

```bash
vllm serve {name} --runner pooling
# POST /pooling {{"model": "{name}", "input": [[…ids…]], "task": "token_classify"}}
```

How prompts and completions become token ids (prefix, suffix, chat template, end token) stands in
`pgtg_reward.json` under `reading`.
"""
DISTILLED = """
The run's own head is `{head}`. This is a linear layer that was fitted to it by least squares:
{lost}. The figures below are those of the run's own head.
"""


def reward_card(run: Run, round: int, lost: Fidelity | None, name: str) -> str:
    """README.md of an exported reward model."""
    base = about_run(run, round)["base_model"]
    tags = "reward-model, token-reward, pgtg"
    return "\n".join(header(run.cfg, "token-classification", hub_id(base), tags)) + REWARD.format(
        name=name,
        about=run.about,
        round=round,
        base=f"; base model {base}" if base else "",
        formula=formula(run.about.bound),
        lost="" if lost is None else DISTILLED.format(head=run.about.head, lost=lost.line),
        figures="\n".join(_figures(figures(run, round))),
    )


def formula(bound: str) -> str:
    """A bound in one line."""
    return (inspect.getdoc(BOUNDS[bound]) or bound).splitlines()[0]


def _figures(found: Mapping[str, float]) -> Iterator[str]:
    part = "heldout" if "heldout_pair_accuracy" in found else "train"
    rows = [
        (text, f"{100 * found[f'{part}_{key}']:.1f} %")
        for key, text in SHARES.items()
        if f"{part}_{key}" in found
    ]
    if f"{part}_kendall_tau" in found:
        rows.append(("Kendall's tau with the preferences", f"{found[f'{part}_kendall_tau']:.3f}"))
    for key, text in AUCS.items():
        for prefix, whose in (("", "token rewards"), ("log_prob_", "log-probability")):
            if (name := f"targets_{prefix}auc_{key}") in found:
                rows.append((f"AUC of {whose}, {text}", f"{found[name]:.3f}"))
            if (name := f"{name}_within") in found:
                rows.append((f"... within strata of log-probability, {text}", f"{found[name]:.3f}"))
    if not rows:
        yield "The run has no figures of it yet."
        return
    yield from (f"On {PARTS[part]}:", "", "| figure | value |", "|---|---:|")
    yield from (f"| {text} | {value} |" for text, value in rows)


POLICY = """# {name}

A policy improved with token rewards by pgtg (task {cfg.task}, method {cfg.method.name}, run
{cfg.name}, seed {cfg.seed}{base}).

`generation_config.json` decodes greedily, as the run's evaluation does. A prompt is read as
{prefix!r} + text + {suffix!r}{chat}, at most {most} tokens.

{results}
"""


def policy_card(cfg: RunConfig, folder: RunFolder, name: str, reading: Mapping[str, Any]) -> str:
    """README.md of an exported policy."""
    base = hub_id(cfg.policy.path)
    pipeline = "text2text-generation" if reading["is_encoder_decoder"] else "text-generation"
    return "\n".join(header(cfg, pipeline, base, "pgtg")) + POLICY.format(
        name=name,
        cfg=cfg,
        base=f", from {base}" if base else "",
        prefix=reading["prefix"],
        suffix=reading["suffix"],
        chat=", a conversation by the chat template" if reading["kind"] == "chat" else "",
        most=reading["max_source_tokens"],
        results="\n".join(_results(folder)),
    )


def _results(folder: RunFolder) -> Iterator[str]:
    """The evaluation's tables."""
    for path in sorted((folder.path / "eval").glob("results_*.json")):
        systems = read_json(path)
        for decoding in next(iter(systems.values()))["decodings"]:
            rows = {name: found["decodings"][decoding]["mean"] for name, found in systems.items()}
            columns = list(next(iter(rows.values())))
            split = path.stem.removeprefix("results_")
            yield from (f"{split}, {decoding} decoding (means over examples):", "")
            yield f"| policy | {' | '.join(columns)} |"
            yield f"|---|{'---:|' * len(columns)}"
            for name, mean in rows.items():
                cells = (f"{mean[column]:.2f}" if column in mean else "n/a" for column in columns)
                yield f"| {name} | {' | '.join(cells)} |"
            yield ""
