"""PGTG: reward-weighted MLE with token weights from the learned r_phi (arXiv:2306.00398, Sec. 2.2).

`SHUFFLED` is its control: the same weights in a random order within each target. If it does as
well, the weights' positions did not matter. Where a reward model that has learned nothing does as
well, what was learned did not matter: `UNTRAINED` is the reward model as its training starts (with
`reward.head=logprob` the start policy's log-probability), `SHUFFLED_SCORES` is trained as the
method's is, on the judge's scores in random order, and `RANDOM_REWARD` has a head of random layers.
"""

from jaxtyping import Bool, Float
from torch import Tensor

from pgtg.config import MethodConfig
from pgtg.methods.method import STAGES, Method
from pgtg.methods.options import WeightedMLE
from pgtg.methods.supervised import SupervisedTrainer
from pgtg.ops.objectives import mle_weights, shuffled_weights, threshold_weights


def weigh(
    rewards: Float[Tensor, "N T"] | None, mask: Bool[Tensor, "N T"], cfg: MethodConfig, seed: int
) -> Float[Tensor, "N T"]:
    """w_t = g(r_t) / sum g(r); or 1/|y| for good tokens, by sign or threshold."""
    assert rewards is not None
    options = WeightedMLE.of(cfg)
    if options.weights != "share":
        return threshold_weights(rewards, mask, below=options.below)
    return mle_weights(rewards, mask, transform=options.transform, to_go=options.reward_to_go)


def weigh_shuffled(
    rewards: Float[Tensor, "N T"] | None, mask: Bool[Tensor, "N T"], cfg: MethodConfig, seed: int
) -> Float[Tensor, "N T"]:
    """The weights of `weigh`, permuted among the tokens of each target."""
    return shuffled_weights(weigh(rewards, mask, cfg, seed), mask, seed)


METHOD = Method("pgtg", STAGES, SupervisedTrainer, weigh, samples=True)
REINFORCE = Method("reinforce", STAGES, SupervisedTrainer, weigh, samples=True)  # method.mle=0
RANDOM_REWARD = Method(
    "random_reward_model",
    ("improve",),
    SupervisedTrainer,
    weigh,
    random_reward=True,
    needs_reward=False,
)
UNTRAINED = Method(
    "untrained",
    ("improve",),
    SupervisedTrainer,
    weigh,
    untrained_reward=True,
    needs_reward=False,
)
SHUFFLED_SCORES = Method(
    "shuffled_scores", ("align", "improve"), SupervisedTrainer, weigh, shuffle_scores=True
)
SHUFFLED = Method("shuffled", ("improve",), SupervisedTrainer, weigh_shuffled)
