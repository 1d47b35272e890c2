"""The tasks, in words; imports nothing heavy."""

from pgtg.config.registry import TaskSpec

TASKS = (
    TaskSpec(
        "summarize",
        "texts with references: reward-weighted MLE on them",
        "pgtg.tasks.summarize:make",
        gives=frozenset({"samples", "judge", "reward", "targets"}),
        controls=("uniform", "shuffled", "untrained", "oracle"),
        evaluation="pgtg.pipeline.evaluation.text:TextEvaluation",
        plan="pgtg.pipeline.plan.summarize",
        check="pgtg.tasks.checks:summarize",
    ),
    TaskSpec(
        "preferences",
        "prompts with ranked completions: reward-weighted MLE on the best, or on all",
        "pgtg.tasks.preferences:make",
        gives=frozenset({"samples", "reward", "targets"}),
        controls=("uniform", "shuffled"),
        evaluation="pgtg.pipeline.evaluation.preferences:PreferencesEvaluation",
        plan="pgtg.pipeline.plan.preferences",
        check="pgtg.tasks.checks:preferences",
    ),
    TaskSpec(
        "prompt",
        "prompts of a few tokens for a frozen classifier LM: REINFORCE",
        "pgtg.tasks.prompt:make",
        gives=frozenset({"samples", "judge", "reward", "classifier"}),
        splits=("train", "dev", "test"),
        controls=("random", "sparse", "shuffled"),
        evaluation="pgtg.pipeline.evaluation.prompt:PromptEvaluation",
        plan="pgtg.pipeline.plan.prompt",
        check="pgtg.tasks.checks:prompt",
        sources=False,
        equal_budgets=True,
        evaluated=("judge", "prompt", "policy.start_text", "seed"),
        section="prompt",
    ),
)
