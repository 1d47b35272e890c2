"""`--dry-run` of a prompt search: what it would judge, train and need, counted beforehand."""

from collections.abc import Mapping
from dataclasses import dataclass

from pgtg.config import RunConfig
from pgtg.config.registry import method_spec
from pgtg.errors import DataError
from pgtg.methods.options import Sparse
from pgtg.pipeline.plan.work import Work, heads_of, lines_of, validations
from pgtg.training.schedule import segments


@dataclass(frozen=True)
class SearchCounts:
    """Work of one prompt search; at most, since a prompt that comes again is judged once.

    Args:
        rounds: Times that prompts are judged.
        lines: The method and its controls; each spends as much.
        judged_prompts: Of one line, on the training split (held-out ones included).
        judged_sequences: Of all lines: training, dev and test; None if a split's size is unknown.
        policy_updates: Of the method.
        sampled_prompts: Drawn for policy updates, not judged.
        reward_updates: Of the method.
    """

    rounds: int
    lines: int
    judged_prompts: int
    judged_sequences: int | None
    policy_updates: int
    sampled_prompts: int
    reward_updates: int


def count(cfg: RunConfig, sizes: dict[str, int | None]) -> SearchCounts:
    """Count; `sizes` holds the examples of train, dev and test, None if unknown, 0 for no file."""
    assert cfg.prompt is not None
    parts = updates_of(cfg)
    rounds, lines = len(parts), 1 + len(cfg.method.alongside)
    judged, checked = judged_of(cfg, rounds)
    ranked = 2 * cfg.prompt.candidates + 1
    validated = 0
    if cfg.prompt.validation_prompts and any(parts):
        every = cfg.improve.validate_every or max(parts)
        validated = cfg.prompt.validation_prompts * sum(-(-part // every) for part in parts)
    tested = tested_prompts(cfg)
    train, dev, test = (sizes[split] for split in ("train", "dev", "test"))
    sequences = None
    if train is not None and dev is not None and test is not None:
        of_line = (judged + ranked) * train + (ranked + validated + checked) * dev
        sequences = lines * of_line + tested * test + len(cfg.prompt.baselines) * (dev + test)
    learns = method_spec(cfg.task, cfg.method.name).learns_reward
    updates = sum(parts)
    if not learns and cfg.method.own_updates is None:
        updates = rounds * Sparse.of(cfg.method).sparse_updates
    window = cfg.improve.micro_batch * cfg.improve.accumulate
    return SearchCounts(
        rounds=rounds,
        lines=lines,
        judged_prompts=judged,
        judged_sequences=sequences,
        policy_updates=updates if "" in lines_of(cfg, "improve") else 0,
        sampled_prompts=updates * window if learns else 0,
        reward_updates=rounds * cfg.reward.fit.updates if learns else 0,
    )


def updates_of(cfg: RunConfig) -> list[int]:
    """Policy updates of each round."""
    own = cfg.method.own_updates
    return segments(cfg.schedule, 0) if own is None else [own]


def judged_of(cfg: RunConfig, rounds: int) -> tuple[int, int]:
    """Prompts that a line has judged at most, on train and on dev, its ranking left out."""
    assert cfg.prompt is not None
    if (asked := cfg.method.asked()) is not None:
        return asked
    judged = cfg.prompt.first + (rounds - 1) * cfg.sample.sources
    fresh, checked = fresh_prompts(cfg, rounds)
    return judged + rounds * cfg.sample.heldout_sources + fresh, checked


def fresh_prompts(cfg: RunConfig, rounds: int) -> tuple[int, int]:
    """Prompts judged for the updates of the reward model (on train) and its checks (on dev), at
    most: a training may stop early."""
    assert cfg.prompt is not None
    if not cfg.prompt.fresh:
        return 0, 0
    fit, pool = cfg.reward.fit, cfg.prompt.pool
    checks = validations(fit, [fit.updates]) * cfg.prompt.fresh_checks
    return rounds * fit.updates * pool, rounds * checks * pool


def tested_prompts(cfg: RunConfig) -> int:
    """Prompts of all lines that are tested, at most: of the search, and of each policy's own."""
    assert cfg.prompt is not None
    lists = len({*lines_of(cfg, "sample"), *lines_of(cfg, "improve")})
    lists += len(lines_of(cfg, "improve"))
    return lists * cfg.prompt.tested * len(cfg.evaluate.splits)


def work(cfg: RunConfig, sizes: Mapping[str, int | None] | None = None) -> Work:
    """All that the search does, counted; evaluation in sequences that are judged.

    Args:
        sizes: Examples of each split; None: those of the data.

    Raises:
        DataError: The data are not on this machine, or cannot be read.
    """
    assert cfg.prompt is not None
    sizes = dict(split_sizes(cfg) if sizes is None else sizes)
    train, dev, test = (sizes[split] for split in ("train", "dev", "test"))
    if train is None or dev is None or test is None:
        raise DataError(f"data.name={cfg.data.name}: the data are not on this machine yet")
    parts, held = updates_of(cfg), cfg.sample.heldout_sources
    found = count(cfg, sizes)
    heads = sum(len(heads_of(cfg, round)) for round in range(len(parts)))
    lines, sampling = len(lines_of(cfg, "improve")), lines_of(cfg, "sample")
    ranked = 2 * cfg.prompt.candidates + 1
    of_line, (fresh, checked) = ranked * (train + dev), fresh_prompts(cfg, len(parts))
    # what a reward model's updates have judged is part of their time, in the other lines it is not
    own = len({*sampling} & {*lines_of(cfg, "align")})
    spent = len(sampling) * (found.judged_prompts + checked) - own * (fresh + checked)
    if cfg.method.asked() is not None:
        spent = found.lines * sum(judged_of(cfg, 1))
    return Work(
        sampled=spent,
        reward_updates=heads * cfg.reward.fit.updates,
        reward_checks=heads * validations(cfg.reward.fit, [cfg.reward.fit.updates]) * held,
        policy_updates=lines * sum(parts),
        policy_checks=lines * validations(cfg.improve, parts) * cfg.prompt.validation_prompts,
        scored=len(parts) * (cfg.sample.sources * ("train" in cfg.reward.score) + held),
        evaluated=found.lines * of_line
        + tested_prompts(cfg) * test
        + len(cfg.prompt.baselines) * (dev + test),
    )


def split_sizes(cfg: RunConfig) -> dict[str, int | None]:
    """Examples of each split; None where they would have to be fetched, 0 where there is no file.

    Raises:
        DataError: The data are on this machine but cannot be read.
    """
    splits = ("train", "dev", "test")
    if cfg.data.name == "reviews":
        from pgtg.data.worlds import reviews

        assert cfg.data.reviews is not None
        return {split: len(rows) for split, rows in reviews.generate(cfg.data.reviews).items()}
    if cfg.data.name == "hub":
        return dict.fromkeys(splits)
    from pgtg.data.fewshot import load_fewshot

    read = {split: load_fewshot(cfg.data, split, cfg.data_seed or 0) for split in splits}
    return {split: 0 if found is None else len(found[0]) for split, found in read.items()}


def describe(cfg: RunConfig, sizes: dict[str, int | None]) -> dict[str, str]:
    """The rows of the plan, for splits of so many examples."""
    found = count(cfg, sizes)
    unknown = "unknown: the data is not on this machine"
    examples = ", ".join(f"{k} {unknown if v is None else v or 'n/a'}" for k, v in sizes.items())
    sequences = unknown
    if found.judged_sequences is not None:
        sequences = f"at most {found.judged_sequences:,}, training, dev and test of all systems"
    controls = f"; as many for each of {found.lines - 1} controls" if found.lines > 1 else ""
    rows = {"examples": examples, "rounds": f"{found.rounds}"}
    if found.judged_prompts:
        rows["judged prompts"] = f"at most {found.judged_prompts:,}{controls}"
    rows["judged sequences"] = sequences
    if found.reward_updates:
        rows["reward updates"] = f"{found.reward_updates:,}"
    if found.policy_updates:
        further = f", on {found.sampled_prompts:,} further prompts" * bool(found.sampled_prompts)
        rows["policy updates"] = f"{found.policy_updates:,}{further}"
    return rows
