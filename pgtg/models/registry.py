"""The reward heads, in words; imports nothing heavy."""

from pgtg.config.registry import RewardHeadSpec

HEADS = (
    RewardHeadSpec(
        "paper",
        "the state after a_t -> MLP; the paper's head",
        "pgtg.models.reward:PaperHead",
    ),
    RewardHeadSpec(
        "linear",
        "the state after a_t -> one linear layer; exported as it is",
        "pgtg.models.reward:LinearHead",
        exported="as it is",
    ),
    RewardHeadSpec(
        "state_action",
        "the states before and after a_t, a_t's embedding and their product -> MLP",
        "pgtg.models.reward:StateActionHead",
    ),
    RewardHeadSpec(
        "logprob",
        "scaled log-probability of a_t under the reward model's own LM head",
        "pgtg.models.reward:LogProbHead",
        exported="never",
    ),
    RewardHeadSpec(
        "log_ratio",
        "beta x (log-probability of a_t less that under the model as it started); 0 at first",
        "pgtg.models.reward:LogRatioHead",
        exported="never",
        reference=True,
    ),
)
