"""Tasks: what is sampled, how it is judged, compared and used to train.

Stages and loop see the `Task` protocol only; a task is chosen here, by its name in the config.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pgtg.config import RunConfig
from pgtg.tasks.task import Task

__all__ = ["Task", "open_task"]


@contextmanager
def open_task(cfg: RunConfig, run_dir: Path, *, judged: bool = True) -> Iterator[Task]:
    """The run's task with its judge, which is closed at the end.

    Args:
        cfg: A checked config.
        run_dir: The run's folder, where models made in its set-up stand.
        judged: False where nothing is judged, as in `pgtg eval`.

    Raises:
        MissingResourceError: What the judge needs is not on this machine.
    """
    if cfg.task == "prompt":
        from pgtg.tasks.prompt import PromptTask

        with PromptTask(cfg, run_dir) as task:
            yield task
        return
    from pgtg.judges.pool import JudgePool
    from pgtg.tasks.summarize import SummarizeTask

    if not judged:
        yield SummarizeTask(cfg)
        return
    how = (cfg.metrics.sentence_splitter, cfg.metrics.tokenizer)
    with JudgePool(cfg.judge, *how) as judge:
        yield SummarizeTask(cfg, judge)
