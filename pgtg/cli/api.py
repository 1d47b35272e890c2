"""The commands as functions: what `pgtg.train`, `pgtg.evaluate`, ... are.

Parameters are the command line's `key=value` texts, and errors are those of `pgtg.errors`, whose
text is what the command line prints.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pgtg.cli.calls import Call
from pgtg.cli.jobs import credit_page
from pgtg.errors import ConfigError, DataError
from pgtg.runtime import distributed

if TYPE_CHECKING:
    from pgtg.models.language import LanguageModel
    from pgtg.models.reward import RewardModel
    from pgtg.models.token_classifier import TokenClassifier


@dataclass(frozen=True)
class TextRewards:
    """What each token of a text earned.

    Args:
        tokens: The tokens' own texts, T of them; joined they are the text. The end token, where
            the text has one, is empty.
        ids: Their ids.
        rewards: float32 [T], r_phi(s_t, a_t) in the reward model's range.
        cut: Whether source or text had to be cut to fit.
    """

    tokens: list[str]
    ids: list[int]
    rewards: np.ndarray
    cut: bool

    def _repr_html_(self) -> str:
        """The text with shaded tokens, in a notebook."""
        return AllRewards([self])._repr_html_()


class AllRewards(list[TextRewards]):
    """What the tokens of several texts earned; a notebook shows them on one scale."""

    def _repr_html_(self) -> str:
        from pgtg.explain.notebook import as_html

        return as_html([(one.tokens, one.ids, one.rewards, one.cut) for one in self])


def train(
    task: str,
    *parameters: str,
    run_dir: str | Path | None = None,
    config_dir: str | Path | None = None,
    force: bool = False,
) -> dict[str, float]:
    """Train, or resume an unfinished run: `pgtg train TASK KEY=VALUE ...`.

    Args:
        task: "summarize", "prompt", or a plugin's.
        parameters: Texts "key=value".
        run_dir: The run's folder; None: a new one below outputs/, as on the command line.
        config_dir: A folder of own config files.
        force: Resume although the config differs from the folder's.

    Returns:
        Final metrics of the trained policy, by name.

    Raises:
        ConfigError: All that is wrong with the call.
        PgtgError: Data, a resource or the run failed.
    """
    from pgtg.pipeline.run import train as run

    own = [] if run_dir is None else [f"run_dir={run_dir}"]
    call = Call.parse(task, [*parameters, *own], None if config_dir is None else Path(config_dir))
    (cfg,) = call.checked()
    distributed.join(cfg.device)
    return run(cfg, call.folder(cfg), force=force, page=credit_page)


def evaluate(
    run_dir: str | Path,
    *parameters: str,
    split: str = "validation",
    metrics: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Evaluate a run's trained policy: `pgtg eval RUN KEY=VALUE ...`.

    Returns:
        "decodings": name -> "mean": metric -> mean over the split's examples, and what they rest
        on.

    Raises:
        ArtifactError: The run has no trained policy yet.
        ConfigError: A parameter changes what the evaluation does not read.
    """
    from pgtg.pipeline.evaluate import evaluate_saved

    names = None if metrics is None else list(metrics)
    own = list(parameters)
    return evaluate_saved(Path(run_dir), split=split, metrics=names, overrides=own, cfg=None)


def load_policy(run_dir: str | Path) -> "tuple[LanguageModel, Any]":
    """A run's trained policy, in eval mode on the CPU, and its tokenizer.

    `.model` of the first is a plain Transformers model; `run_dir/policy` is its folder. Low-rank
    adapters are merged into the model that the run started from.

    Raises:
        ArtifactError: The run has no trained policy yet, or its files are damaged.
        ConfigError: The policy is an adaptor on a frozen model, which is no model of its own; the
            method searches, and trains none.
    """
    from pgtg.models.adaptor import ADAPTOR_JSON
    from pgtg.models.loading import load_language_model
    from pgtg.models.lora import LORA_JSON

    if (found := Path(run_dir) / "found").is_dir():
        raise ConfigError(f"{run_dir}: its method trains no policy; what it found is in {found}")
    folder = _part(run_dir, "policy")
    if (folder / LORA_JSON).is_file():
        return _merged_policy(Path(run_dir))
    if (folder / ADAPTOR_JSON).is_file():
        raise ConfigError(
            f"{folder}: an adaptor on the frozen model of policy.path; it is no model"
        )
    lm, tokenizer = load_language_model(str(folder))
    return lm.eval(), tokenizer


def _merged_policy(run_dir: Path) -> "tuple[LanguageModel, Any]":
    """A policy of low-rank adapters, merged into the model that the run started from."""
    from pgtg.explain.runs import open_run
    from pgtg.models.lora import merge_lora
    from pgtg.pipeline.context import opened
    from pgtg.runs.log import RunLog
    from pgtg.tasks import open_task

    run = open_run(run_dir)
    with open_task(run.cfg, run_dir, judged=False) as task:
        ctx = opened(run.cfg, run.folder, RunLog(None, mute=True), task)
        lm, codec = ctx.load(_part(run_dir, "policy"))
    merge_lora(lm)
    return lm.to("cpu").eval(), codec.tokenizer


def load_reward_model(folder: str | Path) -> "RewardModel | TokenClassifier":
    """A token reward model, in eval mode on the CPU.

    It maps a `pgtg.types.TokenBatch` to rewards [N, T]; `token_rewards` reads texts.

    Args:
        folder: A run folder, for its newest reward model; or one of `pgtg export reward`.

    Raises:
        ArtifactError: The run has trained none yet, or files are damaged or not to be trusted.
    """
    from pgtg.models.reward import load_reward_model as load
    from pgtg.models.token_classifier import is_exported, load_token_classifier

    if is_exported(Path(folder)):
        return load_token_classifier(Path(folder))
    return load(_part(folder, "reward")).eval()


def token_rewards(
    folder: str | Path, sources: Sequence[str | list[dict[str, Any]]], texts: Sequence[str]
) -> list[TextRewards]:
    """What a reward model gives each token of texts: r_phi(s_t, a_t). A notebook shades them.

    Args:
        folder: A run folder with a reward model, or one of `pgtg export reward`.
        sources: What each text continues or sums up; "" where the task has no sources. A chat
            model's may be conversations, lists of {role, content}; a text is a user's turn.
        texts: As many texts.

    Raises:
        ArtifactError: The run has no reward model yet.
        ConfigError: Its method trains none.
        DataError: Not as many texts as sources, or a text without a token.
    """
    from pgtg.explain.runs import open_reader, rewards_of

    if len(sources) != len(texts):
        raise DataError(f"token_rewards: found {len(sources)} sources and {len(texts)} texts")
    found = rewards_of(open_reader(Path(folder)), sources, texts)
    return AllRewards(
        TextRewards(
            [text[piece.start : piece.end] for piece in pieces],
            [piece.id for piece in pieces],
            np.array(values, np.float32),
            cut,
        )
        for text, pieces, values, cut in found
    )


def _part(run_dir: str | Path, name: str) -> Path:
    """A published part of a run, whole."""
    from pgtg.runs.folder import RunFolder

    artifact = RunFolder(Path(run_dir)).open().artifact(name)
    artifact.verify()
    return artifact.path
