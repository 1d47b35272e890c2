"""The config of an existing run, as this version of pgtg reads it."""

from pgtg.config import RunConfig
from pgtg.config.compose import completed, run_config
from pgtg.runs.folder import RunFolder


def config_of(folder: RunFolder) -> RunConfig:
    """A run's config, with today's default for each key that it lacks.

    Raises:
        ArtifactError: There is none that can be read, or it was made with a plugin that is missing.
        ConfigError: It is of another version.
    """
    saved = folder.runnable_config()
    task = str(saved.get("task"))
    return run_config(task, saved=completed(task, saved)[0])
