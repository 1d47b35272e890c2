"""What every stage is given, and where its artifacts and models are found."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pgtg.config import RunConfig
from pgtg.errors import ArtifactError, MissingResourceError
from pgtg.judges.pool import JudgePool
from pgtg.log import RunLog
from pgtg.models.codec import Codec
from pgtg.models.generate import Decoding
from pgtg.models.language import LanguageModel
from pgtg.models.loading import load_language_model
from pgtg.store import Artifact, RunFolder
from pgtg.tasks.summarize import SummarizeTask, codec_for


@dataclass(frozen=True)
class Context:
    """One run, open for work."""

    cfg: RunConfig
    folder: RunFolder
    log: RunLog
    task: SummarizeTask
    judge_pool: JudgePool | None  # None where nothing is judged: in `pgtg eval`
    device: torch.device
    cursor: list[int]  # one number: where the log stood after the last artifact [bytes]

    @property
    def judge(self) -> JudgePool:
        """The true preference."""
        assert self.judge_pool is not None
        return self.judge_pool

    def config_part(self, *names: str) -> dict[str, Any]:
        """The named sections of the config: what a stage's result depends on."""
        whole = asdict(self.cfg)
        whole["judge"].pop("workers")  # any number gives the same scores
        return {name: whole[name] for name in ("task", "seed", *names)}

    def artifact(self, round: int, stage: str, *, control: str = "", head: str = "") -> Artifact:
        """Where a stage's result of a round stands; a control's and a compared head's beside it."""
        parts = ["rounds", f"{round:02d}"]
        if control:
            parts = ["controls", control, f"{round:02d}"]
        elif head:
            parts = ["rounds", f"{round:02d}", "heads", head]
        return self.folder.artifact(*parts, stage)

    def heads(self, round: int) -> list[str]:
        """Reward heads of a round: "" is the one that guides; in round 0 others beside it."""
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

    def sampling(self) -> Decoding:
        """How generations are drawn."""
        s = self.cfg.sample
        return Decoding(False, s.max_new_tokens, s.temperature, s.top_k, s.top_p)

    def greedy(self) -> Decoding:
        return Decoding(True, self.cfg.sample.max_new_tokens)

    def load(self, path: str | Path, *, start: bool = False) -> tuple[LanguageModel, Codec]:
        """A policy and its codec. The config's revision and dtype hold for the start policy; a
        saved policy keeps its own."""
        policy = self.cfg.policy
        lm, tokenizer = load_language_model(
            str(path), revision=policy.revision if start else None, dtype=policy.dtype
        )
        if not policy.dropout:  # set in the config, so that train mode leaves it off as well
            for module in lm.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
        return lm.to(self.device), codec_for(self.cfg, tokenizer, lm.is_encoder_decoder)

    def load_start(self) -> tuple[LanguageModel, Codec]:
        """The policy that the run starts from."""
        if self.cfg.policy.tiny_t5 is not None:
            start = self.need(self.start_artifact(), "train")
            return self.load(start.file("policy"))
        assert self.cfg.policy.path is not None  # config check
        return self.load(self.cfg.policy.path, start=True)

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


def opened(
    cfg: RunConfig, folder: RunFolder, log: RunLog, judge: JudgePool | None = None
) -> Context:
    """The context of a run: its device and threads. Without a judge nothing can be judged.

    Raises:
        MissingResourceError: The device is not there.
    """
    device = pick_device(cfg.device)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    return Context(cfg, folder, log, SummarizeTask(cfg), judge, device, [0])


def pick_device(name: str) -> torch.device:
    """ "auto" takes a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0]
        raise MissingResourceError(f"device={name} cannot be used here: {first}") from error
    return device


def quiet() -> bool:
    """Whether the command line asked for warnings and results only."""
    return bool(os.environ.get("PGTG_QUIET"))
