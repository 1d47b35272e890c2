"""How the goldens were made: figures of others' formulas, copied and nothing else.

    python tests/data/copy_goldens.py pgtg_goldens.json baselines_goldens.json

The first file has those of the paper, as evaluated in float64, apart from this package, by the
formulas of the authors' released code on fixed random inputs; the second those that the released
functions of its rivals gave (OpenRLHF, SimPO, TDPO, RL4LMs, RTO, GrIPS, black-box tuning,
AutoPrompt, RLPrompt): per formula a list of cases, inputs and outputs together; some are of a tiny
RoBERTa, whose weights stand with them. Only the formulas that a test reads are kept.
"""

import json
import sys
from pathlib import Path

GOLDENS = Path(__file__).with_name("goldens.json")
RIVALS = Path(__file__).with_name("rivals.json")
KINDS = {
    GOLDENS: (
        "aggregate",
        "plackett_luce",
        "bounded_reward_softplus",
        "reward_weighted_mle",
        "reinforce_max_entropy",
        "prompt_gap_reward",
    ),
    RIVALS: (
        "preference_losses",
        "group_advantages",
        "clipped_losses_masked",
        "kl_controller",
        "gae",
        "ppo_rollout",
        "ppo_loss",
        "nlpo_mask",
        "nlpo_masked_distribution",
        "rto_rewards",
        "grips_edits",
        "grips_score",
        "grips_search",
        "bbt_projection_init",
        "bbt_objective",
        "bbt_selection",
        "bbt_forward",
        "cma_wiring",
        "autoprompt_candidates",
        "autoprompt_accuracy",
        "autoprompt_step",
        "soft_prompt",
        "soft_q_loss",
        "rlprompt_reward",
        "reward_shaping",
        "target_network",
        "top_k_ties",
        "tiny_roberta",
    ),
}


def copy(source: Path, target: Path) -> None:
    """One line a case, so that a change shows where it is."""
    found = json.loads(source.read_text(encoding="utf-8"))
    cases = {
        kind: found[kind] if isinstance(found[kind], list) else [found[kind]]
        for kind in KINDS[target]
    }
    kinds = (
        f"{json.dumps(kind)}: [\n" + ",\n".join(json.dumps(case) for case in rows) + "\n]"
        for kind, rows in cases.items()
    )
    target.write_text("{\n" + ",\n".join(kinds) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    for source, target in zip(sys.argv[1:], (GOLDENS, RIVALS), strict=True):
        copy(Path(source), target)
