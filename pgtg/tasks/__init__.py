"""Tasks: what is sampled, how it is judged, compared and used to train.

Stages and loop see the `Task` protocol only; a task is found by its name in the registry.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pgtg.config import RunConfig
from pgtg.config.registry import TASKS

if TYPE_CHECKING:
    from pgtg.tasks.task import Task


def task_of(cfg: RunConfig, run_dir: Path) -> "Task":
    """The run's task for its data and codec: no judge is loaded.

    Args:
        cfg: A checked config.
        run_dir: The run's folder, where models made in its set-up stand.
    """
    return TASKS[cfg.task].load()(cfg, run_dir)


@contextmanager
def open_task(cfg: RunConfig, run_dir: Path, *, judged: bool = True) -> Iterator["Task"]:
    """The run's task with its judge, which is closed at the end.

    Args:
        judged: False where nothing is judged, as in `pgtg eval`.

    Raises:
        MissingResourceError: What the judge needs is not on this machine.
    """
    task = task_of(cfg, run_dir)
    try:
        if judged:
            task.open_judge()
        yield task
    finally:
        task.close()
