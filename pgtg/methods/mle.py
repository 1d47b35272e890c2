"""Plain MLE: uniform token weights, no reward model. The paper's "Supervised" row, and the control
next to every result. Each target's loss is its mean over tokens, as in the reward-weighted form, so
that the two differ in the weights alone."""

from pgtg.methods.method import Method
from pgtg.methods.supervised import SupervisedTrainer
from pgtg.ops.objectives import uniform_weights

METHOD = Method(
    "mle",
    ("improve",),
    SupervisedTrainer,
    lambda rewards, mask, cfg, seed: uniform_weights(mask),
    needs_reward=False,
)
