"""How each task's policies are evaluated: what is generated, scored, kept and shown."""

from collections.abc import Callable

from pgtg.config import RunConfig
from pgtg.evaluation.prompt import PromptEvaluation
from pgtg.evaluation.system import Evaluation
from pgtg.evaluation.text import TextEvaluation

EVALUATIONS: dict[str, Callable[[RunConfig], Evaluation]] = {
    "summarize": TextEvaluation,
    "prompt": PromptEvaluation,
}
