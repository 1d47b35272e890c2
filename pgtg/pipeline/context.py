"""What every stage is given, and where its artifacts and models are found."""

import os
from dataclasses import dataclass
from typing import Any

import torch

from pgtg.config import RunConfig, judge_model_of
from pgtg.config.inputs import settings
from pgtg.errors import ArtifactError, ConfigError
from pgtg.methods.setting import Setting
from pgtg.models.codec import Codec
from pgtg.models.language import AUTOCAST, LanguageModel
from pgtg.runs.folder import Artifact, RunFolder
from pgtg.runs.log import RunLog
from pgtg.runtime import distributed
from pgtg.runtime.device import pick_device, require_float64, set_arithmetic
from pgtg.runtime.precision import bf16_speed, judge_dtype, read_dtype
from pgtg.tasks.task import Task


@dataclass(frozen=True)
class Context(Setting):
    """One run, open for work: the setting of its methods, and the folder of its artifacts."""

    folder: RunFolder
    cursor: list[int]  # one number: where the log stood after the last artifact [bytes]

    def settings(self, stage: str) -> dict[str, Any]:
        """Value of each key of the config that a stage's result depends on."""
        return settings(self.cfg, stage)

    def artifact(self, round: int, stage: str, *, control: str = "", head: str = "") -> Artifact:
        """Where a stage's result of a round stands; next to it a control's, a compared head's."""
        parts = ["rounds", f"{round:02d}"]
        if control:
            parts = ["controls", control, f"{round:02d}"]
        elif head:
            parts = ["rounds", f"{round:02d}", "heads", head]
        return self.folder.artifact(*parts, stage)

    def heads(self, round: int) -> list[str]:
        """Reward heads of a round: "" is the one that guides; in round 0 others next to it."""
        own = self.cfg.reward.head
        others = [head for head in self.cfg.reward.compare_heads if head != own]
        return ["", *(others if round == 0 else [])]

    def need(self, artifact: Artifact, stage: str) -> Artifact:
        """The artifact, which an earlier stage must have made.

        Raises:
            ArtifactError: It is not there; names the command that makes it.
        """
        if not artifact.exists():
            raise ArtifactError(
                f"{artifact.path} is not there yet: `pgtg {stage} {self.cfg.task} "
                f"run_dir={self.folder.path}` makes it"
            )
        artifact.verify()
        return artifact

    @distributed.first
    def made(self, artifact: Artifact, inputs: str) -> bool:
        """Whether the artifact is there, whole, and made from these inputs.

        If not, it will be made now: what was made after this point rests on other inputs (a forced
        change of the config, an artifact that the user deleted), so it goes, and so do its log
        lines. Only the artifact's own half-done work stays.
        """
        if artifact.exists() and artifact.manifest()["inputs"] == inputs:
            self.cursor[:] = [artifact.verify()["position"]]
            return True
        own = artifact.working(inputs)
        (self.folder.path / "summary.json").unlink(missing_ok=True)  # not complete any more
        stale = [
            later
            for later in self.folder.artifacts()
            if later.path == artifact.path
            or (later.manifest()["position"] > self.cursor[0] and own not in later.path.parents)
        ]
        for later in stale:
            self.log.say(f"{later.path}: made from other inputs, so it is made again")
            later.remove()
        self.log.rewind(max(self.cursor[0], self.folder.last_position()))
        return False

    def committed(self) -> int:
        """The log's position for a commit; what is made next comes after it."""
        self.cursor[:] = [self.log.position()]
        return self.cursor[0]

    def start_artifact(self) -> Artifact:
        return self.folder.artifact("start")

    def start_path(self) -> str:
        if self.cfg.policy.tiny_t5 is not None or self.cfg.policy.tiny_lm is not None:
            return str(self.need(self.start_artifact(), "train").file("policy"))
        return super().start_path()

    def load_policy(self, round: int, control: str = "") -> tuple[LanguageModel, Codec]:
        """The policy at the start of a round: what the round before left."""
        if round == 0:
            return self.load_start()
        before = self.need(self.artifact(round - 1, "improve", control=control), "improve")
        return self.load(before.file("policy"))

    def parents(self, round: int, control: str = "") -> list[Artifact]:
        """The artifacts that hold the policy at the start of a round."""
        if round > 0:
            return [self.need(self.artifact(round - 1, "improve", control=control), "improve")]
        start = self.start_artifact()
        return [start] if start.exists() else []


def opened(cfg: RunConfig, folder: RunFolder, log: RunLog, task: Task) -> Context:
    """The context of a run: its device and threads.

    Raises:
        MissingResourceError: The device is not there.
        ConfigError: It cannot do what the config asks.
    """
    device = usable_device(cfg)
    said = set_arithmetic(device, tf32=cfg.tf32, deterministic=cfg.deterministic)
    if said:
        log.say(said)
    _say_precision(cfg, device, log)
    threads = cfg.threads or int(os.environ.get("PGTG_THREADS") or 0)  # a sweep's share for a job
    if threads:
        torch.set_num_threads(threads)
    return Context(cfg, log, task, device, folder, [0])


def _say_precision(cfg: RunConfig, device: torch.device, log: RunLog) -> None:
    """What passes without gradients are computed in, and whether that is slow here."""
    dtype = read_dtype(cfg.sample.precision, device)
    name = cfg.policy.dtype if dtype is None else str(dtype).removeprefix("torch.")
    judge = judge_model_of(cfg)
    judged = f", the judge's {judge_dtype(judge[1].dtype, device)}" if judge else ""
    asked = cfg.sample.precision
    log.note(f"sample.precision={asked}: weights without gradients are {name} on {device}{judged}")
    if asked == "bf16" and device.type == "cpu" and (speed := bf16_speed(device)) < 1:
        log.warn(
            f"sample.precision=bf16: products in bf16 take {1 / speed:.1f} times as long as in "
            'float32 on this CPU; expected auto or "no"'
        )


def usable_device(cfg: RunConfig) -> torch.device:
    """The config's device, which can do what the config asks.

    Raises:
        MissingResourceError: It is not there.
        ConfigError: It lacks float64, or the precision of a training.
    """
    device = pick_device(cfg.device)
    require_float64(device)
    for name, fit in {"reward.fit": cfg.reward.fit, "improve": cfg.improve}.items():
        require_precision(device, fit.precision, f"{name}.precision")
    return device


def require_precision(device: torch.device, precision: str, key: str) -> None:
    """A product in autocast's type and its gradient, tried.

    Raises:
        ConfigError: This torch cannot compute them on this device.
    """
    if precision == "no":
        return
    square = torch.ones(8, 8, device=device, requires_grad=True)
    try:
        with torch.autocast(device.type, AUTOCAST[precision]):
            product = square @ square
        product.float().sum().backward()
    except RuntimeError as error:
        found = f"{precision}, which this torch lacks on {device.type}"
        raise ConfigError(f"{key}: found {found}: {str(error).splitlines()[0]}") from error
    if product.dtype != AUTOCAST[precision]:
        raise ConfigError(f"{key}: found {precision}, which this torch lacks on {device.type}")


def quiet() -> bool:
    """Whether the command line asked for warnings and results only."""
    return bool(os.environ.get("PGTG_QUIET"))
