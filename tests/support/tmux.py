"""A real terminal of a given size, in which commands are typed: tmux, where it is installed."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path


class Tmux:
    """A shell in a terminal of so many columns and 24 rows; to be used as a context.

    Args:
        folder: Where the shell starts; tmux keeps its socket in it.
        env: More of the environment.
    """

    def __init__(self, folder: Path, columns: int, env: Mapping[str, str]):
        self.folder, self.columns = folder, columns
        # before each prompt: the exit code goes to a file, and whoever waits is told
        prompt = "echo $? > .code; tmux wait-for -S prompt"
        own = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "TMUX")}
        self.env = {**own, **env, "PROMPT_COMMAND": prompt, "PS1": "$ "}

    def __enter__(self) -> "Tmux":
        size = ["-x", str(self.columns), "-y", "24"]
        self._tmux("new-session", "-d", *size, "bash --norc --noprofile")
        self._tmux("set-option", "-g", "history-limit", "10000")
        self._tmux("wait-for", "prompt")
        return self

    def __exit__(self, *_: object) -> None:
        self._tmux("kill-server")

    def type(self, command: str) -> tuple[int, list[str]]:
        """Type a command and wait for the next prompt: its exit code, and what it left on the
        screen and above it, lines that the terminal broke joined again."""
        self._tmux("send-keys", "-R")
        self._tmux("clear-history")
        self._tmux("send-keys", "-l", command)
        self._tmux("send-keys", "Enter")
        self._tmux("wait-for", "prompt")
        shown = self._tmux("capture-pane", "-p", "-J", "-S", "-").rstrip("\n")
        lines = [line.rstrip() for line in shown.splitlines()]
        return int((self.folder / ".code").read_text()), lines

    def _tmux(self, *words: str) -> str:
        call = ["tmux", "-S", str(self.folder / ".tmux"), *words]
        done = subprocess.run(
            call, cwd=self.folder, env=self.env, capture_output=True, text=True, check=True
        )
        return done.stdout
