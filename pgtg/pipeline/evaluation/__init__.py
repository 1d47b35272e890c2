"""How each task's policies are evaluated: what is generated, scored, kept and shown."""

from collections.abc import Callable

from pgtg.config import RunConfig
from pgtg.pipeline.evaluation.prompt import PromptEvaluation
from pgtg.pipeline.evaluation.system import Evaluation
from pgtg.pipeline.evaluation.text import TextEvaluation

EVALUATIONS: dict[str, Callable[[RunConfig], Evaluation]] = {
    "summarize": TextEvaluation,
    "prompt": PromptEvaluation,
}
