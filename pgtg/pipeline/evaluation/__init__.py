"""How each task's policies are evaluated: what is generated, scored, kept and shown."""

from pgtg.config import RunConfig
from pgtg.config.registry import TASKS, resolve
from pgtg.pipeline.evaluation.system import Evaluation


def evaluation_of(cfg: RunConfig) -> Evaluation:
    """The evaluation of the config's task."""
    return resolve(TASKS[cfg.task].evaluation)(cfg)
