"""Methods of policy improvement and their controls, by task.

A method is a name, the stages it runs, and the stream its policy trains on. A control is a method
beside the run's own, from the same start and with the same budget; what it does not make itself
it takes from the main line.
"""

from pgtg.config import RunConfig
from pgtg.methods import mle, pgtg, prompt
from pgtg.methods.method import Method

METHODS: dict[str, dict[str, Method]] = {
    "summarize": {"pgtg": pgtg.METHOD, "mle": mle.METHOD},
    "prompt": {"pgtg": prompt.PGTG, "sparse": prompt.SPARSE, "random": prompt.RANDOM},
}
CONTROLS: dict[str, dict[str, Method]] = {
    "summarize": {
        "uniform": mle.METHOD,
        "shuffled": pgtg.SHUFFLED,
        "random_reward_model": pgtg.RANDOM_REWARD,
    },
    "prompt": {
        "random": prompt.RANDOM,
        "sparse": prompt.SPARSE,
        "shuffled": prompt.SHUFFLED,
        "random_reward_model": prompt.RANDOM_REWARD,
    },
}


def method_of(cfg: RunConfig, control: str = "") -> Method:
    """The run's method, or that of one of its controls."""
    return CONTROLS[cfg.task][control] if control else METHODS[cfg.task][cfg.method.name]
