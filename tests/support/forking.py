"""Children of the command line that start at once: forked from a process that has done the imports.

Imports take a child most of its life. The forking process has done them, and nothing else, when it
forks a child that calls `pgtg`. A child does not wait for the disk, as tests do not: what a killed
process wrote is there without it.
"""

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

FORKS = """
import json, os, sys
import transformers.models.t5.modeling_t5, transformers.models.t5.configuration_t5
import transformers.models.gpt2.modeling_gpt2, transformers.models.roberta.modeling_roberta
import pgtg.cli.calls, pgtg.cli.main, pgtg.cli.jobs, pgtg.pipeline.run
from torch.optim import Optimizer

def steady(eps, add=Optimizer.add_param_group):
    Optimizer.add_param_group = lambda self, group: add(self, {**group, "eps": eps})

for line in sys.stdin:
    ask = json.loads(line)
    if "wait" in ask:
        done, status = os.waitpid(ask["wait"], 0 if ask["block"] else os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if done else None), flush=True)
        continue
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        continue
    code = 1
    try:
        for number, name in ((1, ask["stdout"]), (2, ask["stderr"])):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT, 0o600), number)
        os.fsync = lambda descriptor: None
        os.chdir(ask["cwd"])
        os.environ.clear()
        os.environ.update(ask["environment"])
        if ask["adam_eps"]:
            steady(ask["adam_eps"])
        sys.argv = ["pgtg", *ask["start"]]
        pgtg.cli.main.app()
    except SystemExit as end:
        code = end.code or 0
    except KeyboardInterrupt:
        code = 130  # before the command line is there to take it
    finally:
        os._exit(code)
"""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PGTG_QUIET": ""}


class Forked:
    """A child of the forking process, with the part of Popen's interface that is used here.

    Args:
        arguments: Of the command line, without `pgtg`.
        stderr: File that takes its stderr.
        stdout: File that takes its stdout.
        environment: Variables of its own.
        adam_eps: In place of Adam's own eps, 1e-8. A weight whose gradient is no larger (a sum that
            cancels) moves by what rounding left of it, up to a whole step. With more than that,
            runs that add in another order have equal weights but for rounding.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        stderr: Path,
        environment: Mapping[str, str] | None = None,
        adam_eps: float | None = None,
        *,
        stdout: Path | None = None,
    ):
        self.stderr = stderr
        for path in (stderr, stdout):
            if path is not None:
                path.unlink(missing_ok=True)
        start = {"start": list(arguments), "adam_eps": adam_eps, "cwd": str(Path.cwd())}
        start |= {"stderr": str(stderr), "stdout": os.devnull if stdout is None else str(stdout)}
        own = {**os.environ, **ENVIRONMENT, **(environment or {})}
        self.pid = self._ask(start | {"environment": own})
        self.returncode: int | None = None

    def _ask(self, question: dict) -> int:
        server = _server()
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(question) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._ask({"wait": self.pid, "block": False})
        return self.returncode

    def send_signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def communicate(self, timeout: float) -> tuple[None, str]:
        if self.returncode is None:
            self.returncode = self._ask({"wait": self.pid, "block": True})
        # a child that was killed at once has not opened it
        return None, self.stderr.read_text() if self.stderr.exists() else ""


@cache
def _server() -> subprocess.Popen[str]:
    """The forking process: one for all children of this process, which ends with it."""
    server = subprocess.Popen(
        [sys.executable, "-c", FORKS],
        env={**os.environ, **ENVIRONMENT},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(_end, server)
    return server


def _end(server: subprocess.Popen[str]) -> None:
    server.kill()
    server.communicate()
