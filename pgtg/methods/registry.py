"""The methods and their controls, in words; imports nothing heavy.

A control is a method that runs alongside another one, from the same start and with the same budget;
what it does not make itself it takes from the main line. Where two share a name, a run has the
first whose needs its task meets.
"""

from pgtg.config.registry import MethodSpec
from pgtg.methods.options import Reinforce, Sparse, WeightedMLE

TARGETS = frozenset({"targets"})
GUIDED = frozenset({"samples", "reward", "targets"})
SEARCH = frozenset({"samples", "judge", "classifier"})

METHODS = (
    MethodSpec(
        "pgtg",
        "the paper: reward-weighted MLE, or REINFORCE where there are no targets",
        "pgtg.methods.pgtg:METHOD",
        GUIDED,
        options=WeightedMLE,
    ),
    MethodSpec(
        "pgtg",
        "the paper: REINFORCE with the learned token rewards",
        "pgtg.methods.prompt:PGTG",
        SEARCH | {"reward"},
        options=Reinforce,
    ),
    MethodSpec(
        "reinforce",
        "REINFORCE with learned token rewards on the policy's own generations",
        "pgtg.methods.pgtg:REINFORCE",
        GUIDED,
        options=WeightedMLE,
    ),
    MethodSpec(
        "mle",
        "plain MLE: uniform weights, no reward model (summarize)",
        "pgtg.methods.mle:METHOD",
        TARGETS,
        controlled=False,
    ),
    MethodSpec(
        "sparse",
        "REINFORCE on the judge's own score, no reward model (prompt)",
        "pgtg.methods.prompt:SPARSE",
        SEARCH,
        alongside=True,
        options=Sparse,
    ),
    MethodSpec(
        "random",
        "random search: prompts of the start policy (prompt)",
        "pgtg.methods.prompt:RANDOM",
        SEARCH,
        alongside=True,
    ),
    MethodSpec(
        "uniform",
        "plain MLE from the same start (summarize)",
        "pgtg.methods.mle:METHOD",
        TARGETS,
        alone=False,
        alongside=True,
        baseline=True,
        question="Does guidance help?",
    ),
    MethodSpec(
        "shuffled",
        "the same weights, or judge's scores, in random order",
        "pgtg.methods.pgtg:SHUFFLED",
        GUIDED,
        alone=False,
        alongside=True,
        question="Do the weights' positions matter?",
    ),
    MethodSpec(
        "untrained",
        "guided by the reward model as its training starts",
        "pgtg.methods.pgtg:UNTRAINED",
        TARGETS,
        alone=False,
        alongside=True,
        question="Was it learned, or is it confidence?",
    ),
    MethodSpec(
        "shuffled_scores",
        "guided by a reward model that learned the judge's scores in random order",
        "pgtg.methods.pgtg:SHUFFLED_SCORES",
        GUIDED,
        alone=False,
        alongside=True,
        question="Was it learned from the judge?",
    ),
    MethodSpec(
        "sequence",
        "every token of a target weighted by the target's evaluation",
        "pgtg.methods.sequence:SEQUENCE",
        GUIDED,
        alone=False,
        alongside=True,
        question="Must tokens be told apart?",
    ),
    MethodSpec(
        "filter",
        "plain MLE on the best evaluated targets (method.filter_share)",
        "pgtg.methods.sequence:FILTER",
        GUIDED,
        alone=False,
        alongside=True,
        question="Is it more than filtering targets?",
    ),
    MethodSpec(
        "oracle",
        "weights from planted truth: what a perfect reward could gain (generated data)",
        "pgtg.methods.oracle:METHOD",
        TARGETS,
        alone=False,
        alongside=True,
        question="Better than planted truth?",
        planted=True,
    ),
    MethodSpec(
        "shuffled",
        "the judge's scores in random order",
        "pgtg.methods.prompt:SHUFFLED",
        SEARCH | {"reward"},
        alone=False,
        alongside=True,
    ),
    MethodSpec(
        "random_reward_model",
        "guided by a reward model with random layers in its head",
        "pgtg.methods.pgtg:RANDOM_REWARD",
        TARGETS,
        alone=False,
        alongside=True,
    ),
    MethodSpec(
        "random_reward_model",
        "guided by a reward model with random layers in its head",
        "pgtg.methods.prompt:RANDOM_REWARD",
        SEARCH,
        alone=False,
        alongside=True,
    ),
)
