"""The texts that are asked for, and what each run says of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pgtg.config.registry import JUDGES
from pgtg.errors import ConfigError
from pgtg.explain.credit import Explained, explained
from pgtg.explain.runs import Read, Reader, Run, labelled, open_reader, read
from pgtg.explain.shading import Scale
from pgtg.explain.texts import Texts, of_run, of_user
from pgtg.runs.log import RunLog

FEW, MANY = 3, 50  # sources that are shown: in the terminal, elsewhere


@dataclass(frozen=True)
class Options:
    """What the command line asks for; see `pgtg explain --help`."""

    split: str | None = None
    text: Path | None = None
    n: int | None = None
    html: Path | None = None
    format: str | None = None
    out: Path | None = None
    others: tuple[Path, ...] = ()
    quiet: bool = False


@dataclass(frozen=True)
class Credit:
    """What is shown or written: groups, and the runs that read them."""

    groups: list[Explained]
    runs: Sequence[Reader]
    scales: list[Scale]
    special: frozenset[int]  # ids of tokens that are no text
    origin: str  # of the texts, in words
    judge: str = ""  # whose scores they have, if any

    @property
    def order(self) -> str:
        """Of the texts of a group, in words."""
        if all(entry.score is not None for group in self.groups for entry in group.entries):
            judge = JUDGES[self.judge]
            by = (
                "as they were ranked" if judge.absent else f"in the order of the judge {judge.name}"
            )
            return f"{by}, best first"
        return f"not judged, so in the order of {self.runs[0].label}, best first"


def gather(path: Path, options: Options, log: RunLog) -> Credit:
    """All texts with what each run says of them."""
    others = [p for p in options.others if p.resolve() != path.resolve()]
    runs = labelled([open_reader(p) for p in [path, *dict.fromkeys(others)]])
    texts = _texts(runs[0], options, log)
    found = []
    for run in runs:
        made = read(run, texts.groups, runs[0].codec)
        _warn_of_cuts(run, made, log)
        found.append(made.views)
    groups = [
        explained(group, [views[n] for views in found]) for n, group in enumerate(texts.groups)
    ]
    if runs[0].sourceless and options.text is None:  # one group: n of its texts
        groups = [replace(group, entries=group.entries[: options.n]) for group in groups]
    scales = [
        Scale.of([r for views in run for view in views for r in view.rewards]) for run in found
    ]
    special = frozenset(i for run in runs for i in run.codec.tokenizer.all_special_ids)
    judge = runs[0].cfg.judge.name if isinstance(runs[0], Run) else ""
    return Credit(groups, runs, scales, special, texts.origin, judge)


def _texts(reader: Reader, options: Options, log: RunLog) -> Texts:
    terminal = options.html is None and options.out is None
    if options.text is not None:
        return of_user(reader, options.text, options.n, log)
    if not isinstance(reader, Run):
        raise ConfigError(f"{reader.path}: an exported reward model has no texts: give --text FILE")
    return of_run(reader, options.split, options.n or (FEW if terminal else MANY), log)


def _warn_of_cuts(reader: Reader, made: Read, log: RunLog) -> None:
    limits = {
        "source": (made.cut_sources, reader.codec.max_source_tokens),
        "target": (made.cut_texts, reader.codec.max_target_tokens),
    }
    for kind, (cut, most) in limits.items():
        if cut:
            log.warn(f"{reader.label}: {cut} {kind}s cut to policy.max_{kind}_tokens={most}")
