"""Methods of policy improvement: how each weighs the tokens of a target.

All supervised methods share one objective (`methods.objective`); a method is a name, whether it
needs a reward model, and a function from token rewards to token weights.
"""

from pgtg.methods import mle, pgtg
from pgtg.methods.method import Method

METHODS: dict[str, Method] = {"pgtg": pgtg.METHOD, "mle": mle.METHOD}
# what a run can train beside its method, from the same start, for as many updates on the same data
CONTROLS: dict[str, Method] = {"uniform": mle.METHOD, "shuffled": pgtg.SHUFFLED}
