"""Where models lie that a config names."""

from pathlib import Path


def policy_folder(path: str) -> str:
    """The folder of a policy: of a finished run, the one that it published; else as it is."""
    folder = Path(path).expanduser()
    published = folder / "policy"
    if not (folder / "config.json").is_file() and (published / "config.json").is_file():
        return str(published)
    return path
