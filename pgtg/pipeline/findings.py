"""What a run found, as tables and plain sentences: also where the method does not help."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pgtg.methods import method_of
from pgtg.ops.statistics import (
    REFERENCES,
    SEEDS,
    UNDIRECTED,
    Comparison,
    compare,
    corrected,
    word_of,
)
from pgtg.pipeline.context import Context
from pgtg.runs.folder import Artifact, read_json, read_jsonl
from pgtg.runs.log import RunLog

Absent = Mapping[str, str]
KINDS = ("highest", "random")  # tokens that are deleted
PARTS = {"heldout": "held-out sources", "train": "samples that were learned from"}
MANY_ROUNDS = 4  # more of them are shown by the first and the last only
NOT_COMPARED = (*UNDIRECTED, "rouge1", "rouge2", "rougeL")  # in the tables only


def show(log: RunLog, title: str, results: Mapping[str, Mapping[str, Any]], absent: Absent) -> None:
    """One table a decoding: a row a system, a column a metric. Of one system a row a metric."""
    decodings = next(iter(results.values()))["decodings"]
    if len(results) == 1:
        ((name, only),) = results.items()
        alike: dict[tuple[str, ...], list[str]] = {}
        for decoding, found in decodings.items():
            alike.setdefault(tuple(found["mean"]), []).append(decoding)
        for metrics, those in alike.items():
            log.table(
                f"{title}: {name}, {', '.join(those)}: means over {only['examples']} examples",
                ["metric", *those],
                [[m, *(_rounded(decodings[d]["mean"][m]) for d in those)] for m in metrics],
            )
        decodings = {}
    for decoding in decodings:
        rows = {name: found["decodings"][decoding]["mean"] for name, found in results.items()}
        columns = list(next(iter(rows.values())))
        examples = next(iter(results.values()))["examples"]
        log.table(
            f"{title}, {decoding} decoding, {examples} examples (means over examples)",
            ["policy", *columns],
            [
                [name, *(round(mean[column], 2) for column in columns)]
                for name, mean in rows.items()
            ],
        )
    for name, reason in absent.items():
        log.warn(f"metric {name} is absent: {reason}")


def verdicts(ctx: Context, splits: Sequence[str]) -> None:
    """Say where the method helps on these texts, and where it does not, against its controls.

    One family of comparisons for all that is said: Holm over splits, controls, decodings, metrics.
    """
    method, controls = ctx.cfg.method.name, ctx.cfg.method.alongside
    decodings = [*ctx.cfg.evaluate.decodings]
    if all(_rows(ctx, split, method, REFERENCES) for split in splits):
        decodings.append(REFERENCES)
    places = [(s, c, d) for s in splits for c in controls for d in decodings]
    found: dict[tuple[str, ...], Comparison] = {}
    for split, control, decoding in places:
        ours, other = (scores_of(ctx, split, name, decoding) for name in (method, control))
        for column in ours:
            if column not in NOT_COMPARED:
                pair = ({"": np.array(scores[column], float)} for scores in (ours, other))
                comparison = compare(*pair)
                if comparison is not None:
                    found[split, control, decoding, column] = comparison
    if not found:
        return
    family = dict(zip(found, corrected([*found.values()]), strict=True))
    for place in places:
        split, control, decoding = place
        said = [
            f"{column} {one.difference:+.2f} [{one.low:+.2f}, {one.high:+.2f}] "
            f"({word_of(one, column)})"
            for (*at, column), one in family.items()
            if tuple(at) == place
        ]
        ctx.log.say(f"{split}, {decoding}: {method} minus {control}: " + "; ".join(said))
    ctx.log.say(
        f"better and worse: on these texts, corrected for {len(family)} comparisons; one seed "
        f"decides nothing: `-m seed=0,1,2` makes {SEEDS}, and `pgtg report` says what they show"
    )


def _rows(ctx: Context, split: str, system: str, decoding: str) -> list[dict[str, Any]]:
    path = ctx.folder.artifact("eval", split, system).file(f"samples_{decoding}.jsonl")
    return read_jsonl(path) if path.is_file() else []


def scores_of(ctx: Context, split: str, system: str, decoding: str) -> dict[str, list[float]]:
    """Per-example scores by column."""
    rows = [row["scores"] for row in _rows(ctx, split, system, decoding)]
    return {column: [row[column] for row in rows] for column in rows[0]}


CURVE = (0.0, 0.25, 0.5, 0.75, 1.0)  # from the first round to the end, where a search is shown


def show_prompts(
    log: RunLog, title: str, split: str, results: Mapping[str, Mapping[str, Any]]
) -> None:
    """The systems' best prompts, of search and of policy, and how each search went."""
    rows = []
    for name, found in results.items():
        search, decodings = found.get("search", {}), found["decodings"]
        spent = [search.get("judged_prompts", 0), search.get("judged_sequences", 0)]
        spent += [found.get("judged_sequences_in_all", 0)]
        spent += [_rounded(search.get(key)) for key in ("best_train_score", "last_mean_score")]
        kinds = {"best": ("best_prompt", "top", name, spent)}
        if "policy_prompt" in found:
            kinds["best"] = ("best_prompt", "top", f"{name}: search", spent)
            whose = "choice" if found["policy_prompt"]["from"] == "search" else "policy"
            kinds["policy"] = ("policy_prompt", "policy_top", f"{name}: {whose}", [None] * 5)
        for kind, (key, top, label, cells) in kinds.items():
            best = found[key]
            mean = decodings.get(kind, {}).get("mean", {})
            means = decodings.get(top, {}).get("mean", {})
            rows.append(
                [
                    label,
                    *cells,
                    _rounded(best["dev_score"]),
                    _rounded(best["dev_accuracy"]),
                    _rounded(mean.get("accuracy"), "n/a"),
                    _rounded(means.get("accuracy"), "n/a" if split not in decodings else None),
                    repr(best["text"]),
                ]
            )
    columns = ["system", "prompts", "sequences", "in all", "best train", "last mean"]
    columns += ["dev", "dev %"]
    log.table(
        f"{title}: judged prompts and sequences (in all: with ranking and test), gap scores, "
        "accuracy (best by dev; mean of top); search: of all judged, policy: of its own prompts, "
        "choice: what the search itself ends with",
        [*columns, f"{split} %", "top %", "prompt"],
        rows,
        first=(f"{split} %", "dev %", "prompt", "prompts"),
    )
    _show_curves(log, results)
    for name, found in results.items():
        for metric, reason in found["absent"].items():
            log.warn(f"{name}: {metric} is n/a: {reason}")
        if rewards := found.get("search", {}).get("token_rewards"):
            log.table(
                f"{name}: learned reward of each token of its best prompt",
                ["token", "reward"],
                [[repr(word), round(value, 4)] for word, value in rewards],
            )


def _show_curves(log: RunLog, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Best score so far (mean of the newest prompts) from the first round on."""
    searches = {name: found.get("search", {}) for name, found in results.items()}
    curves = {name: search["curve"] for name, search in searches.items() if "curve" in search}
    if not curves:
        return
    first = max(curve[0]["prompts"] for curve in curves.values())
    total = max(curve[-1]["prompts"] for curve in curves.values())
    marks = [round(first + share * (total - first)) for share in CURVE]
    rows = []
    for name, curve in curves.items():
        cells = []
        for mark in marks:
            past = [row for row in curve if row["prompts"] <= mark]
            cells.append(f"{past[-1]['best']:.1f} ({past[-1]['mean']:.1f})")
        rows.append([name, *cells])
    columns = [f"{mark} drawn" for mark in marks]
    title = "learning curve: best train score so far (mean of the newest), by prompts drawn"
    log.table(title, ["system", *columns], rows, first=columns[::-1])


def _rounded(value: float | None, otherwise: str | None = None) -> float | str | None:
    return otherwise if value is None else round(value, 2)


def reward_table(ctx: Context, rounds: int) -> dict[str, float]:
    """Print the token rewards' worth next to the baselines; returns the last round's figures.

    Of many rounds the first and the last are shown. Pairs are those of held-out sources, or, where
    nothing is held out, of the samples that were learned from: then "fresh" matters, the pairs that
    the reward model of the round before, which had not seen them, ordered right.
    """
    rows: list[list[Any]] = [["chance", 50.0, 50.0, *([0.5] * 4)]]
    found: dict[str, float] = {}
    part = "heldout" if "heldout" in ctx.cfg.reward.score else "train"
    for number in range(rounds):
        for head in ctx.heads(number)[::-1]:  # the one that guides comes last, and is returned
            found = ctx.artifact(number, "aggregate", head=head).manifest()["metrics"]
            if rounds > MANY_ROUNDS and 0 < number < rounds - 1:
                continue
            name = f"{head} head (comparison)" if head else f"reward model ({ctx.cfg.reward.head})"
            fresh = None
            if not head:
                made = ctx.artifact(number, "align").manifest()["metrics"]
                fresh = made.get("align/fresh_pair_accuracy")
            rows.append([f"{number}: {name}", *_columns(found, part, "pair_accuracy", "")])
            rows[-1].insert(2, None if fresh is None else round(100 * fresh, 1))
        if rounds > MANY_ROUNDS and 0 < number < rounds - 1:
            continue
        baselines = {
            "start log-probability": ("log_prob_wins", "log_prob_"),
            "longer wins": ("longer_wins", None),
            "shorter wins": ("shorter_wins", None),
        }
        for name, (pairs, prefix) in baselines.items():
            if f"aggregate/{part}_{pairs}" in found:
                columns = _columns(found, part, pairs, prefix)
                rows.append([f"{number}: {name}", columns[0], None, *columns[1:]])
    planted = any(cell is not None for row in rows[1:] for cell in row[3:])
    columns = ["token reward", "pairs %", "fresh %"]
    columns += ["flaws", "flaws|p", "end>tail", "right>wrong"]
    title = (
        f"token rewards, {PARTS[part]}: pairs ordered as they are preferred (fresh: by the reward "
    )
    title += "model of the round before)"
    if planted:
        title += "; AUC of right over harmful tokens (|p: within strata of equal log-probability); "
        title += "shares of same states where the right token is above the flaw's first"
    width = len(columns) if planted else 3
    ctx.log.table(title, columns[:width], [row[:width] for row in rows])
    names = {"kendall_tau": "Kendall tau", "margin": "margin [nats]"}
    names |= {"calibration_error": "calibration error"}
    given = {name: found.get(f"aggregate/{part}_{key}") for key, name in names.items()}
    said = [f"{name} {value:.3f}" for name, value in given.items() if value is not None]
    if said:
        ctx.log.say(f"reward model on {PARTS[part]}: {', '.join(said)}")
    return {f"reward/{key.removeprefix('aggregate/')}": value for key, value in found.items()}


def _columns(
    found: Mapping[str, float], part: str, pairs: str, prefix: str | None
) -> list[float | None]:
    """Pairs, then the AUCs of a reward (prefix "") or of the log-probability baseline."""
    aucs = []
    for name in ("auc_flaws", "auc_flaws_within", "end_over_tail", "right_over_wrong"):
        key = f"aggregate/targets_{prefix}{name}"
        aucs.append(round(found[key], 3) if prefix is not None and key in found else None)
    value = found.get(f"aggregate/{part}_{pairs}")
    return [None if value is None else round(100 * value, 1), *aucs]


def places(ctx: Context) -> None:
    """Where to look next."""
    run, stages = ctx.folder.path, method_of(ctx.cfg).stages
    if "improve" in stages:
        ctx.log.say(f"policy: {run}/policy")
    if "align" in stages:
        ctx.log.say(f"token rewards: pgtg explain {run}")
    ctx.log.say(f"all figures: pgtg report {run}")


def show_diagnostics(log: RunLog, artifact: Artifact) -> None:
    """Staleness as a table, faithfulness as a table and one plain sentence."""
    stale = read_json(artifact.file("staleness.json"))
    columns = sorted({row["sample_round"] for row in stale})
    found = {(r["reward_round"], r["sample_round"]): r["pair_accuracy"] for r in stale}
    if len(columns) > 1:
        log.table(
            "staleness: pairs % that a round's reward model orders right on each round's samples",
            ["reward model", *(f"samples {j}" for j in columns)],
            first=[f"samples {j}" for j in (columns[0], *columns[:0:-1])],
            rows=[
                [f"round {i}", *(_rounded(100 * found[i, j]) for j in columns if (i, j) in found)]
                for i in sorted({row["reward_round"] for row in stale})
            ],
        )
    if "faithfulness.json" not in artifact.manifest()["files"]:  # nothing judges generations
        return
    faithful = read_json(artifact.file("faithfulness.json"))
    rows = [[r["deleted"], r["texts"], *(round(r[k], 2) for k in KINDS)] for r in faithful["curve"]]
    log.table(
        "faithfulness: change of the judge's score after deleting tokens",
        ["deleted", "texts", "of highest reward", "at random"],
        rows,
    )
    rho = faithful["means"].get("leave_one_out_spearman")
    if rho is not None:
        log.say(f"leaving one token out: its cost goes with its reward at Spearman {rho:+.2f}")
