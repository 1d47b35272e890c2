"""What a config may name: tasks, methods, judges, metrics, aggregators, reward heads.

Each kind has one registry. Its members are specs: small frozen dataclasses that say in words what a
thing is, what it needs, and where its code is ("module:attribute", imported when it is used, so
that nothing here loads torch). pgtg's own specs stand in the `registry.py` of the room that they
belong to; those of installed packages come from entry points, those of `--plugin` from its file.
Whoever needs to know what there is (checks, ls, completion, plan, doctor, explain, report) asks
here.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from pgtg.config import plugins
from pgtg.config.schema import JudgeConfig, MethodConfig, TextJudgeConfig
from pgtg.errors import ConfigError

T = TypeVar("T")


def resolve(code: Any) -> Any:
    """What a spec's code names: "module:attribute", or "module"; an object is itself."""
    if not isinstance(code, str):
        return code
    module, _, name = code.partition(":")
    found = import_module(module)
    return getattr(found, name) if name else found


@cache
def installed() -> Any:
    """What installed packages offer, to `select` from; their files are looked through once."""
    return entry_points()


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or all of a short list."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return hint + (f" (known: {', '.join(known)})" if len(known) <= 12 else "")


def look_up(table: Mapping[str, T], name: str, key: str) -> T:
    """The entry `name` of a table of ours that takes no plugins.

    Raises:
        ConfigError: No such entry; names the config's key and the nearest name.
    """
    if name not in table:
        raise ConfigError(f"{key}: there is no '{name}'{nearest(str(name), table)}")
    return table[name]


@dataclass(frozen=True)
class Spec:
    """One thing that a config may name.

    Args:
        name: As in the config.
        about: What it is, in one line of `pgtg ls`.
        code: Where it is: "module:attribute", or the object itself.
    """

    name: str
    about: str
    code: Any

    def load(self) -> Any:
        return resolve(self.code)


@dataclass(frozen=True)
class AggregatorSpec(Spec):
    """f: token rewards -> one evaluation; `code` is an `ops.aggregate.Function`.

    Args:
        scaled: Whether its value is multiplied by the group's mean length (C in Sec. 2.1).
    """

    scaled: bool = True


@dataclass(frozen=True)
class RewardHeadSpec(Spec):
    """A reward head; `code` is an `nn.Module` built of (width of the backbone, its shape).

    Args:
        exported: By `pgtg export reward`: "as it is", where it is one linear layer `score` on the
            state after a token; "distilled" into one, on request; or "never".
        reference: Whether it compares the backbone with a frozen copy of how it started, which its
            `forward` gets as a third argument; it has no weights to train without the backbone's.
    """

    exported: str = "distilled"
    reference: bool = False


@dataclass(frozen=True)
class JudgeSpec(Spec):
    """A judge; `code` builds a `TextJudge` of (sentence splitter, tokenizer).

    Args:
        main: It judges in the main process: `code` opens a `judges.judge.Judge` of the config.
        check: (config, fetch) -> what else is to be said before a run; raises what refuses it.
        prompts: It judges prompts, not texts; the prompt task builds it itself.
        absent: It judges nothing; a task whose preferences are stored needs no judge.
        options: Its section of the config, a subclass of `JudgeConfig` or where it is, as `code`.
    """

    prompts: bool = False
    absent: bool = False
    options: Any = TextJudgeConfig
    main: bool = False
    check: Any = ""


@dataclass(frozen=True)
class MetricSpec(Spec):
    """A metric of the evaluation; `code` builds a `TextMetric` of (config, device)."""


@dataclass(frozen=True)
class TaskSpec(Spec):
    """Where texts, preferences and targets come from; `code` makes a `Task` of (config, folder).

    Args:
        gives: What its data offer a method: samples, reward, judge, and targets or classifier.
        splits: Names of its data's splits; the first is trained on.
        controls: What runs alongside a method with a learned reward where none are named; what
            reads planted truth only where there is some.
        evaluation: Makes its `Evaluation` of the config.
        plan: Module that counts its work: `split_sizes`, `describe`, `work`.
        check: (config) -> what is wrong with its own part of it, a line each.
        sources: Whether each generation belongs to a text that it continues or sums up.
        equal_budgets: Whether controls have as many generations judged as the method.
        evaluated: Keys and sections, in addition to those of every task, that its evaluation reads.
        section: A section of the config that only this task has, "" for none.
    """

    gives: frozenset[str] = frozenset()
    splits: tuple[str, ...] = ("train", "validation", "test")
    controls: tuple[str, ...] = ()
    evaluation: Any = ""
    plan: Any = ""
    check: Any = ""
    sources: bool = True
    equal_budgets: bool = False
    evaluated: tuple[str, ...] = ()
    section: str = ""


@dataclass(frozen=True)
class MethodSpec(Spec):
    """What a policy is trained on; `code` is a `methods.method.Method`.

    Args:
        needs: What it asks of a task, in the words of `TaskSpec.gives`: it runs where all is given.
        alone: Whether it may be a run's method.
        alongside: Whether it may be a control: same start, same budget.
        planted: Whether it reads planted truth (data=newswire, data.flaws).
        baseline: Whether gains are counted from it.
        question: What a control asks: it is answered where its results are shown.
        controlled: Whether it takes controls; one that is what others are held against does not.
        options: Its section of the config, a subclass of `MethodConfig` or where it is, as `code`.
        chosen_by: An option and its value: of specs that share a name, a run has the one whose
            value its own is. None: whatever the options are.
    """

    needs: frozenset[str] = frozenset()
    alone: bool = True
    alongside: bool = False
    planted: bool = False
    baseline: bool = False
    question: str = ""
    controlled: bool = True
    options: Any = MethodConfig
    chosen_by: tuple[str, Any] | None = None

    @property
    def learns_reward(self) -> bool:
        return "reward" in self.needs

    @property
    def reads_judged(self) -> bool:
        """Whether it learns from judged generations themselves; as a control it has its own."""
        return "samples" in self.needs and not self.learns_reward


S = TypeVar("S", bound=Spec)


@dataclass
class Registry(Mapping[str, S], Generic[S]):
    """Specs of one kind by name; where two share a name, the first that was added.

    Args:
        key: The config's key that holds such a name.
        kind: Class of the specs.
        home: "module:attribute" of pgtg's own.
        points: Group of the entry points that name other packages' own: each a spec or several.
    """

    key: str
    kind: type[S]
    home: str
    points: str
    _own: list[S] = field(default_factory=list)
    _others: list[S] = field(default_factory=list)

    @property
    def specs(self) -> list[S]:
        """All of them: pgtg's, those of installed packages, those of `--plugin`.

        Raises:
            ConfigError: An installed package's, or a plugin's, cannot be used.
        """
        return [*self._known(), *self.others]

    @property
    def others(self) -> list[S]:
        """Those that are not pgtg's: of installed packages and of `--plugin`.

        Raises:
            ConfigError: One of them cannot be used.
        """
        self._known()
        add_plugins()
        return [*self._others]

    def add(self, *specs: S) -> None:
        """Add a plugin's specs.

        Raises:
            ConfigError: A name is taken.
        """
        self._known()
        self._others += self._checked(specs, "a plugin")

    def _known(self) -> list[S]:
        """pgtg's own; those of installed packages are found at the first call."""
        if not self._own:
            self._own = list(resolve(self.home))
            for point in installed().select(group=self.points):
                whose = f"the entry point {point.name} = {point.value} of {self.points}"
                try:
                    found = point.load()
                except Exception as error:
                    raise ConfigError(f"{whose}: {type(error).__name__}: {error}") from error
                self._others += self._checked(found, whose)
        return self._own

    def _checked(self, found: Any, whose: str) -> list[S]:
        specs: list[Any] = [found] if isinstance(found, Spec) else [*found]
        for spec in specs:
            if not isinstance(spec, self.kind):
                raise ConfigError(f"{whose}: {spec!r} is no {self.kind.__name__}")
            if any(spec.name == other.name for other in [*self._own, *self._others]):
                raise ConfigError(f"{self.key}: {whose} has a '{spec.name}', but there is one")
        return specs

    def about(self) -> dict[str, str]:
        """Name -> what it is."""
        return {name: self[name].about for name in self}

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(spec.name for spec in self.specs))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return any(spec.name == name for spec in self.specs)

    def __getitem__(self, name: str) -> S:
        """The spec of a name.

        Raises:
            ConfigError: There is none; says the nearest.
        """
        for spec in self.specs:
            if spec.name == name:
                return spec
        raise ConfigError(f"{self.key}: there is no '{name}'{nearest(str(name), self)}")


TASKS = Registry("task", TaskSpec, "pgtg.tasks.registry:TASKS", "pgtg.tasks")
METHODS = Registry("method.name", MethodSpec, "pgtg.methods.registry:METHODS", "pgtg.methods")
JUDGES = Registry("judge.name", JudgeSpec, "pgtg.judges.registry:JUDGES", "pgtg.judges")
METRICS = Registry("metrics.names", MetricSpec, "pgtg.metrics.registry:METRICS", "pgtg.metrics")
AGGREGATORS = Registry(
    "aggregator.name", AggregatorSpec, "pgtg.ops.registry:AGGREGATORS", "pgtg.aggregators"
)
HEADS = Registry("reward.head", RewardHeadSpec, "pgtg.models.registry:HEADS", "pgtg.heads")
REGISTRIES: tuple[Registry, ...] = (TASKS, METHODS, JUDGES, METRICS, AGGREGATORS, HEADS)


_PLUGGED: set[Path] = set()


def add_plugins() -> None:
    """Add the specs of the plugins that this process was asked for, each once.

    Raises:
        ConfigError: A plugin cannot be run, or holds what is no spec.
    """
    for path in plugins.paths():
        if path in _PLUGGED:
            continue
        _PLUGGED.add(path)  # before it runs: it may ask a registry itself
        try:
            for spec in plugins.specs_of(path):
                _home(spec, path).add(spec)
        except ConfigError:
            _PLUGGED.discard(path)
            raise


def _home(spec: object, path: Path) -> Registry:
    for registry in REGISTRIES:
        if type(spec) is registry.kind:
            return registry
    raise ConfigError(f"--plugin {path}: {spec!r} is no spec of pgtg.config.registry")


def methods_of(task: str) -> dict[str, MethodSpec]:
    """The methods that a run of the task may have, by name."""
    return _for(task, alone=True)


def controls_of(task: str) -> dict[str, MethodSpec]:
    """The controls that may run alongside a method of the task, by name."""
    return _for(task, alone=False)


def method_spec(
    task: str, name: str, *, control: bool = False, options: MethodConfig | None = None
) -> MethodSpec:
    """A method or control of a task.

    Args:
        options: The run's; None: whatever they are.

    Raises:
        ConfigError: There is none of this name, or the task lacks what it needs.
    """
    known = _for(task, alone=not control, options=options)
    if name not in known:
        raise ConfigError(refusal(task, name, control=control, options=options) or "")
    return known[name]


def options_of(section: str, task: str, name: str) -> type:
    """The class of an owned section (`schema.OWNED`) of a task: the options of what it names.

    Where that is not known, it has only the keys that all of its kind have.
    """
    if section == "judge":
        return resolve(JUDGES[name].options) if name in JUDGES else JudgeConfig
    known = methods_of(task) if task in TASKS else {}
    spec = known.get(name) or next((s for s in METHODS.specs if s.name == name), None)
    return MethodConfig if spec is None else resolve(spec.options)


def refusal(
    task: str, name: str, *, control: bool = False, options: MethodConfig | None = None
) -> str | None:
    """Why a method or control cannot run for a task with a run's options; None if it can."""
    key = "method.controls" if control else METHODS.key
    known = _for(task, alone=not control, options=options)
    if name in known:
        return None
    named = [spec for spec in METHODS.specs if spec.name == name and _role(spec, not control)]
    if not named:
        return f"{key}: there is no '{name}'{nearest(name, known)}"
    spec = next((spec for spec in named if _chosen(spec, options)), named[0])
    lacks, others = ", ".join(sorted(spec.needs - TASKS[task].gives)), ", ".join(known)
    said = f"'{name}'"
    if spec.chosen_by is not None:
        said += f" with method.{spec.chosen_by[0]}={spec.chosen_by[1]}"
    return f"{key}: {said} needs {lacks}, which the task {task} lacks; it has {others}"


def _for(task: str, *, alone: bool, options: MethodConfig | None = None) -> dict[str, MethodSpec]:
    gives = TASKS[task].gives
    found: dict[str, MethodSpec] = {}
    for spec in METHODS.specs:
        if spec.needs <= gives and _role(spec, alone) and _chosen(spec, options):
            found.setdefault(spec.name, spec)
    return found


def _chosen(spec: MethodSpec, options: MethodConfig | None) -> bool:
    """Whether a run's options choose this spec of its name. Where they lack the option, or have a
    value that none is for, its neutral value does."""
    if options is None or spec.chosen_by is None:
        return True
    key, value = spec.chosen_by
    found = getattr(options, key, None)
    if found not in {other.chosen_by[1] for other in METHODS.specs if other.chosen_by}:
        found = getattr(resolve(spec.options), "NEUTRAL", {}).get(key)
    return found == value


def _role(spec: MethodSpec, alone: bool) -> bool:
    return spec.alone if alone else spec.alongside
