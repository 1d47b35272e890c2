"""How many units of each kind of work a run does, in one form for all tasks."""

from collections.abc import Sequence
from dataclasses import dataclass

from pgtg.config import FitConfig, RunConfig


@dataclass(frozen=True)
class Work:
    """Units of work of a whole run, its controls and compared heads included.

    Args:
        sampled: Sources (or prompts) whose generations are sampled and judged.
        reward_updates: Updates of reward models, at most.
        reward_checks: Held-out sources of all validations of reward models.
        policy_updates: Updates of policies.
        policy_checks: Texts (or prompts) that are judged by all validations of policies.
        scored: Sources whose generations get token rewards written.
        evaluated: Texts (or judged sequences) of the final evaluation.
        set_up: Updates of the trainings that make the models of the embedded default; else 1.
    """

    sampled: int
    reward_updates: int
    reward_checks: int
    policy_updates: int
    policy_checks: int
    scored: int
    evaluated: int
    set_up: int = 1


def lines_of(cfg: RunConfig, stage: str) -> list[str]:
    """The lines of a run that have a stage of their own: "" is the method, then its controls."""
    from pgtg.methods import method_of

    found = ("", *cfg.method.alongside)
    return [line for line in found if stage in method_of(cfg, line).stages]


def heads_of(cfg: RunConfig, round: int) -> list[str]:
    """Reward models of a round: the lines' own (""), and in round 0 the compared heads'."""
    own = ["" for _ in lines_of(cfg, "align")]
    if not own:
        return []
    compared = [head for head in cfg.reward.compare_heads if head != cfg.reward.head]
    return [*own, *(compared if round == 0 else [])]


def validations(fit: FitConfig, updates: Sequence[int]) -> int:
    """How often trainings of so many updates are validated: at every interval, and at the end."""
    return sum(-(-n // fit.validate_every) if fit.validate_every else 1 for n in updates)
