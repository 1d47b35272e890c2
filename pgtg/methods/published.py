"""What a run ends with: a policy, or what its method found and trained no policy for."""

from pgtg.config import RunConfig
from pgtg.errors import ArtifactError, ConfigError
from pgtg.methods import method_of
from pgtg.runs.folder import Artifact, RunFolder

WHAT = {"policy": "trained policy", "found": "result of its search"}


def published(cfg: RunConfig, folder: RunFolder) -> Artifact:
    """It, whole.

    Raises:
        ArtifactError: The run has not ended, or files are damaged.
    """
    name = method_of(cfg).published
    artifact = folder.artifact(name)
    if not artifact.exists():
        raise ArtifactError(f"{folder.path} holds no {WHAT[name]} yet: `pgtg train` finishes it")
    artifact.verify()
    return artifact


def trained_policy(cfg: RunConfig, folder: RunFolder) -> Artifact:
    """The same of a run that trains a policy.

    Raises:
        ConfigError: Its method trains none.
    """
    name = method_of(cfg).published
    if name != "policy":
        raise ConfigError(
            f"{folder.path}: method={cfg.method.name} trains no policy of the task; what it found "
            f"is in {folder.path / name}"
        )
    return published(cfg, folder)
