"""`pgtg export reward`: a run's reward model as a plain Transformers token classifier.

A linear head is written as it is. Other heads on states are distilled into one on request, and what
is lost is said. What the logits are is the raw z, before the bound: servers then need no function
of ours, and whoever wants rewards applies the bound that `pgtg_reward.json` names.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForTokenClassification

from pgtg.config.registry import HEADS
from pgtg.data.generations import read_generations
from pgtg.errors import ArtifactError, ConfigError
from pgtg.explain.runs import Run, open_run
from pgtg.explain.texts import last_samples
from pgtg.export.card import about_run, reward_card
from pgtg.export.distil import Fidelity, distilled, fidelity
from pgtg.export.folder import growing, require_free
from pgtg.models.batch import token_batch
from pgtg.models.loading import save_folder
from pgtg.models.reward import RewardModel, load_reward_model
from pgtg.models.token_classifier import (
    FORMAT,
    REWARD_JSON,
    TokenClassifier,
    classifier_of,
    codec_as_json,
)
from pgtg.runs.artifacts import hash_of
from pgtg.runs.folder import write_json
from pgtg.runs.log import RunLog
from pgtg.runtime.device import pick_device
from pgtg.types import Generations, TokenBatch

PROBED = 8  # texts that are read again by what was written
TOLERANCE = 1e-4  # of z, of its largest size or of 1: float32 sums in another order
ELSEWHERE = "`pgtg export tokens` and pgtg.load_reward_model give its rewards"


@dataclass(frozen=True)
class Stored:
    """The newest round's texts: what a head is distilled on, and what it is checked on."""

    round: int
    learned: Generations
    checked: Generations
    part: str  # "heldout", or "train" where nothing is held out
    hash: str


def export_reward(path: Path, out: Path, *, distil: bool, force: bool, log: RunLog) -> None:
    """Write a run's newest reward model to a folder that `AutoModelForTokenClassification` loads.

    Args:
        path: Run folder.
        out: The folder to be.
        distil: Fit a linear head where the run's is none.
        force: Replace an earlier export.

    Raises:
        ConfigError: The reward model is none that a token classifier can be, or `out` is taken.
        ArtifactError: No run, or one without a reward model yet; what was written reads otherwise.
    """
    require_free(out, force=force)
    run = open_run(path)
    _require_head(run, distil=distil)
    device = pick_device(run.cfg.device)
    model = load_reward_model(run.reward.path).to(device).eval()
    classifier_of(model.backbone.model, nn.Linear(model.backbone.width, 1))
    stored = _stored(run)
    lost = None
    linear = model
    if HEADS[model.spec.head].exported != "as it is":
        linear = distilled(run, model, stored.learned, device, log)
        lost = fidelity(run, model, linear, stored.checked, stored.part, device)
        log.say(f"distilled {model.spec.head} into a linear head: {lost.line}")
    with growing(out, force=force) as folder:
        score = linear.head.get_submodule("score")
        assert isinstance(score, nn.Linear)
        save_folder(classifier_of(linear.backbone.model, score), run.codec.tokenizer, folder)
        gap = _compared(folder, linear, _probe(stored.checked, device))
        write_json(folder / REWARD_JSON, _as_json(run, model, stored, lost, gap))
        card = reward_card(run, stored.round, lost, out.name)
        (folder / "README.md").write_text(card, encoding="utf-8")
    log.say(f"reloaded by AutoModelForTokenClassification: largest gap {gap:.1e} in z on a probe")
    log.say(f"written to {out}")


def _require_head(run: Run, *, distil: bool) -> None:
    """Refuse, in one line with what to do instead, what no token classifier can be."""
    name = run.about.head
    if run.codec.is_encoder_decoder:
        raise ConfigError(
            f"{run.path}: its reward model is an encoder-decoder, and Transformers' token "
            f"classifiers of these have no decoder: {ELSEWHERE}"
        )
    if run.cfg.reward.granularity != "token":
        raise ConfigError(
            f"{run.path}: reward.granularity={run.cfg.reward.granularity}, and a token classifier "
            f"has a number for each token by itself: {ELSEWHERE}"
        )
    exported = HEADS[name].exported
    if exported == "never":
        raise ConfigError(
            f"{run.path}: reward.head={name} is no function of the state after a token, so no "
            f"linear layer stands for it: {ELSEWHERE}; reward.head=linear is exported as it is"
        )
    if exported != "as it is" and not distil:
        raise ConfigError(
            f"{run.path}: reward.head={name} is no linear layer: --distil fits one to its token "
            "rewards and says what is lost; reward.head=linear is exported as it is"
        )


def _stored(run: Run) -> Stored:
    round, samples = last_samples(run)
    part = "heldout" if (samples.path / "heldout").is_dir() else "train"
    learned, checked = read_generations(samples, "train"), read_generations(samples, part)
    return Stored(round, learned, checked, part, hash_of([samples], {}))


def _probe(generations: Generations, device: torch.device) -> TokenBatch:
    rows = range(min(PROBED, len(generations.tokens)))
    return token_batch(
        [generations.sources[generations.origin[row]] for row in rows],
        [generations.tokens[row] for row in rows],
        rows,
        device,
    )


@torch.no_grad()
def _compared(folder: Path, model: RewardModel, probe: TokenBatch) -> float:
    """Largest gap between the written folder's logits and the model's z on the probe.

    Raises:
        ArtifactError: It is above the tolerance.
    """
    plain = AutoModelForTokenClassification.from_pretrained(folder).to(probe.tokens.device).eval()
    found = TokenClassifier(plain, model.spec.bound).raw(probe)[probe.mask]
    expected = model.raw(probe)[probe.mask]
    gap, size = (found - expected).abs().max().item(), expected.abs().max().item()
    if not gap <= TOLERANCE * max(size, 1.0):
        raise ArtifactError(
            f"the exported {type(plain).__name__} gives other logits than the run's reward model "
            f"(largest gap {gap:.2e} in z, {TOLERANCE:.0e} allowed), so nothing was written; "
            "please report this with the backbone's name"
        )
    return gap


def _as_json(
    run: Run, model: RewardModel, stored: Stored, lost: Fidelity | None, gap: float
) -> dict[str, Any]:
    """All of pgtg_reward.json."""
    return {
        "format": FORMAT,
        "logits": "logits[..., 0] at a token is z, before the bound; its reward is r = bound(z)",
        **run.about.as_json(),
        "reading": codec_as_json(run.codec),
        "mask": {
            "prompt": "not rewarded",
            "completion": "rewarded, the token that ends it too",
            "end_tokens": list(run.codec.eos_ids),
        },
        "normaliser": None if model.normalizer is None else asdict(model.normalizer),
        "distilled": None if lost is None else asdict(lost),
        "reload": {"largest_gap": gap, "tolerance": TOLERANCE},
        "data": {"round": stored.round, "samples": stored.hash},
        **about_run(run, stored.round),
    }
