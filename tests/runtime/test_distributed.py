"""Several processes do what one does: the same samples, losses, results; and they end together."""

import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from pgtg.errors import DataError
from pgtg.runs.folder import load_tensors, read_table
from pgtg.runs.log import RunLog
from pgtg.runtime import distributed
from pgtg.runtime.distributed import PeerLost
from tests.support.forking import Forked
from tests.support.tiny import TINY
from tests.support.tiny_preferences import TINY_PREFERENCES
from tests.support.tiny_prompt import TINY_PROMPT
from tests.training.test_loop import CFG, cut, logged, network, rows, run, weights

COUNT = 2
STEADY = 1e-6  # Adam's eps: far above the rounding of a gradient, far below most gradients (5e-4)
PATIENCE = 240.0  # s, on a busy machine
# Two micro-batches an update, so that each process has one.
DEALT = {
    "summarize": [
        *TINY,
        "reward.fit.micro_batch=2",
        "reward.fit.accumulate=2",
        "improve.micro_batch=2",
        "improve.accumulate=2",
        "evaluate.decodings=[greedy,sample]",
        "method.reinforce=0.1",
        "method.kl=0.1",
        "method.samples=2",
        "method.baseline=group",
    ],
    "prompt": [
        *TINY_PROMPT,
        "reward.fit.micro_batch=2",
        "reward.fit.accumulate=2",
        "improve.micro_batch=4",
        "improve.accumulate=2",
    ],
    "preferences": [
        *TINY_PREFERENCES,
        "policy.tiny_lm.fit.micro_batch=4",
        "policy.tiny_lm.fit.accumulate=2",
        "reward.fit.micro_batch=2",
        "reward.fit.accumulate=2",
        "improve.micro_batch=2",
        "improve.accumulate=2",
        "method.reinforce=0.1",
        "method.samples=2",
    ],
}


def environment(rank: int, port: int) -> dict[str, str]:
    """What a launcher tells the process of this rank, on one machine."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": COUNT, "LOCAL_WORLD_SIZE": COUNT}
    values = {name: str(value) for name, value in names.items()}
    return values | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


# --- the exchanges, in processes that do nothing else


def together(
    work: Callable[..., None], folder: Path, told: Mapping[str, str] | None = None
) -> list[int | None]:
    """Exit codes of the processes that each called `work(rank, folder)`, told something more."""
    context, port = multiprocessing.get_context("forkserver"), free_port()
    context.set_forkserver_preload(["accelerate", "pgtg.training.loop"])
    members = [
        context.Process(target=_member, args=(work, rank, port, folder, told or {}))
        for rank in range(COUNT)
    ]
    for member in members:
        member.start()
    for member in members:
        member.join(PATIENCE)
    return [member.exitcode for member in members]


def _member(
    work: Callable[..., None], rank: int, port: int, folder: Path, told: Mapping[str, str]
) -> None:
    os.environ.update({**environment(rank, port), **told})
    distributed.join("cpu")
    assert (distributed.count(), distributed.is_first()) == (COUNT, rank == 0)
    work(rank, folder)


def test_one_process_is_alone():
    assert (distributed.count(), distributed.is_first(), distributed.key()) == (1, True, ())
    assert distributed.own(range(3)) == [0, 1, 2] == list(distributed.share(range(3)))
    assert distributed.spread(lambda items: [i + 1 for i in items], [1, 2]) == [2, 3]
    assert distributed.everyone(lambda: "a") == ["a"] and distributed.first(max)(1, 2) == 2


def exchange(rank: int, folder: Path) -> None:
    assert distributed.own(range(5)) == [[0, 2, 4], [1, 3]][rank]
    assert list(distributed.share(range(5))) == [[0, 1], [2, 3, 4]][rank]
    for size in (5, 1, 0):  # also with less than one item for each
        assert distributed.spread(lambda items: [-i for i in items], range(size)) == [
            -i for i in range(size)
        ]
    assert distributed.everyone(lambda: rank) == [0, 1]
    alone = distributed.first(lambda: (rank, distributed.count()))()
    assert alone == (0, 1)  # the first, as if there were no other
    told = folder / f"{rank}.txt"
    time.sleep(0.3 * rank)
    told.write_text("here")
    assert distributed.first(lambda: sorted(p.name for p in folder.iterdir()))() == [
        "0.txt",
        "1.txt",
    ]
    assert distributed.agreed_signal(signal.SIGTERM if rank else None) == signal.SIGTERM
    assert distributed.agreed_signal(None) is None
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    parameters[0].grad = torch.full((2,), 1.0 + rank)
    if rank:
        parameters[1].grad = torch.ones(2)
    distributed.add_up(parameters)
    found = [None if p.grad is None else p.grad.tolist() for p in parameters]
    assert found == [[3, 3], [1, 1], None]


def logging(rank: int, folder: Path) -> None:
    """The first process keeps the log; what it does for a commit needs no other process."""
    log = RunLog(None if rank else folder, mute=rank > 0)
    log.metrics("align", 0, 1, {"loss": 1.5})
    position = log.position()
    assert distributed.everyone(lambda: "here") == ["here", "here"]
    assert (position > 0) == (rank == 0)
    log.metrics("align", 0, 2, {"loss": 0.5})
    log.rewind(position)
    assert distributed.first(lambda: rank)() == 0
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1
    log.close(0)


def fail_in_one(rank: int, folder: Path) -> None:
    def work() -> None:
        if rank:
            raise DataError("only here")

    with pytest.raises(DataError, match="only here") as caught:
        distributed.everyone(work)
    assert distributed.tells(caught.value) == (rank == 0)

    def refuse() -> None:
        raise DataError("by the first")

    with pytest.raises(DataError, match="by the first"):
        distributed.first(refuse)()


@pytest.mark.slow
def test_what_is_divided_comes_back_whole_and_errors_are_shared(tmp_path: Path):
    assert together(exchange, tmp_path) == [0, 0]
    assert together(fail_in_one, tmp_path) == [0, 0]
    assert together(logging, tmp_path) == [0, 0]


def fit_here(rank: int, folder: Path) -> None:
    """Three micro-batches for two processes."""
    model = network()
    cfg = replace(CFG, accumulate=3)
    run(model, folder / str(rank) / "fit", cfg, lambda step: cut(rows(step), 3, 2, 3))
    torch.save(weights(model), folder / f"{rank}.pt")


def test_a_window_that_is_dealt_out_trains_as_one(tmp_path: Path):
    """Both processes hold the same bits; one process the same numbers but for rounding."""
    assert together(fit_here, tmp_path) == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(COUNT))
    assert_close(first, second, rtol=0, atol=0)
    alone = network()
    run(alone, tmp_path / "alone" / "fit", windows=lambda step: cut(rows(step), 3, 2, 3))
    assert_close(first, weights(alone), rtol=1e-5, atol=1e-6)
    expected, found = logged(tmp_path / "alone" / "fit"), logged(tmp_path / "0" / "fit")
    assert found == logged(tmp_path / "1" / "fit")
    for a, b in zip(expected, found, strict=True):
        assert a.pop("stage") == b.pop("stage") and a == pytest.approx(b, rel=1e-5, abs=1e-6)


def lose_one(rank: int, folder: Path) -> None:
    distributed.everyone(lambda: None)
    if rank:
        os.kill(os.getpid(), signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(PeerLost, match="another process of this run has ended"):
        distributed.everyone(lambda: None)
    assert time.monotonic() - start < 10


def test_a_process_that_is_killed_ends_the_other(tmp_path: Path):
    assert together(lose_one, tmp_path) == [0, -signal.SIGKILL]


# --- whole runs, by the command line


def started(
    task: str,
    folder: Path,
    *more: str,
    count: int = COUNT,
    told: Mapping[str, str] | None = None,
    words: Sequence[str] | None = None,
) -> list[Forked]:
    """The processes of one run, which are told something more, or other words than `DEALT`."""
    port, children = free_port(), []
    for rank in range(count):
        arguments = ["train", task, *(words or DEALT[task]), *more, f"run_dir={folder}"]
        here = {**(environment(rank, port) if count > 1 else {}), **(told or {})}
        stderr = folder.with_name(f"{folder.name}.{rank}.err")
        children.append(Forked(arguments, stderr, here, adam_eps=STEADY))
    return children


def ended(children: list[Forked]) -> list[tuple[int | None, str]]:
    """Exit code and stderr of each."""
    said = [child.communicate(timeout=PATIENCE)[1] for child in children]
    return [(child.returncode, text) for child, text in zip(children, said, strict=True)]


def close(a: Any, b: Any, most: float = 1e-5) -> bool:
    """Equal, numbers to 1e-5; statistics of ranks, where a tie may fall either way, to 1e-3."""
    if isinstance(a, Mapping):
        limits = {name: 1e-3 if "auc" in name or "spearman" in name else most for name in a}
        return a.keys() == b.keys() and all(close(a[name], b[name], limits[name]) for name in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(close(x, y, most) for x, y in zip(a, b, strict=True))
    return a == (pytest.approx(b, rel=most, abs=most) if isinstance(a, float) else b)


@pytest.mark.slow
@pytest.mark.parametrize("task", DEALT)
def test_two_processes_end_as_one(task: str, tmp_path: Path):
    runs = [started(task, tmp_path / str(count), count=count) for count in (1, COUNT)]
    for code, said in [each for one in runs for each in ended(one)]:
        assert code == 0, said
    same(tmp_path / "1", tmp_path / "2")


UNITS = ["reward.granularity=segment", "reward.segments=entropy", "reward.segment_entropy=3.5"]
NORMALISED = ["reward.normalize=place", "sample.heldout_sources=8", "method.weights=sign"]


@pytest.mark.slow
def test_normalised_log_ratios_of_segments_end_as_one(tmp_path: Path):
    more = ["reward.head=log_ratio", "reward.bound=none", *UNITS, *NORMALISED]
    runs = [started("preferences", tmp_path / str(n), *more, count=n) for n in (1, COUNT)]
    for code, said in [each for one in runs for each in ended(one)]:
        assert code == 0, said
    same(tmp_path / "1", tmp_path / "2")


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["best_of_k", "dpo", "simpo", "tdpo", "grpo", "rloo", "ppo", "nlpo"]
)
def test_methods_that_learn_from_judged_texts_end_as_one(method: str, tmp_path: Path):
    _texts_end_as_one(tmp_path, f"method={method}")


@pytest.mark.slow
def test_hints_in_two_processes_end_as_one(tmp_path: Path):
    """A plugin lets any policy pass for one that reads hints."""
    plugin = tmp_path / "any_policy.py"
    plugin.write_text(
        "from pgtg.config.registry import MethodSpec\n"
        "from pgtg.methods import self_distill\n"
        "self_distill.LEAST = -1e9\n"
        'SPECS = [MethodSpec("unused", "as mle", "pgtg.methods.mle:METHOD", frozenset())]\n'
    )
    words = ["method=self_distill", "method.hint='{winner} {source}'", f"--plugin={plugin}"]
    _texts_end_as_one(tmp_path, *words)


@pytest.mark.slow
def test_a_run_of_dpo_that_two_processes_read_ends_as_one(tmp_path: Path):
    more = ["method=dpo", "evaluate.splits=[]"]
    (dpo,) = started("summarize", tmp_path / "dpo", *more, count=1, words=_few())
    ((code, said),) = ended([dpo])
    assert code == 0, said
    _texts_end_as_one(tmp_path, "method=rto", f"method.dpo={tmp_path / 'dpo'}")


def _few() -> list[str]:
    return [word for word in DEALT["summarize"] if not word.startswith("method.")]


def _texts_end_as_one(tmp_path: Path, *words: str) -> None:
    runs = []
    for count in (1, COUNT):
        runs.append(started("summarize", tmp_path / str(count), *words, count=count, words=_few()))
    for code, said in [each for one in runs for each in ended(one)]:
        assert code == 0, said
    same(tmp_path / "1", tmp_path / "2")


SEARCHES = {
    "grips": ["method.phrases=words", "method.score=gap"],
    "autoprompt": ["method.iterations=3", "method.candidates=3", "method.tokens=2"],
    "rlprompt": ["method.updates=3", "method.prompts=4"],
    "soft_prompt": ["method.updates=4", "method.tokens=3", "method.batch=4"],
    "finetune": ["method.updates=4", "method.batch=4", "method.kind=prompt"],  # without dropout
}


@pytest.mark.slow
@pytest.mark.parametrize("method", SEARCHES)
def test_searches_for_prompts_end_as_one(method: str, tmp_path: Path):
    words, runs = [*TINY_PROMPT, "prompt.baselines=[]", *SEARCHES[method]], []
    for count in (1, COUNT):
        folder = tmp_path / str(count)
        runs.append(started("prompt", folder, f"method={method}", count=count, words=words))
    for code, said in [each for one in runs for each in ended(one)]:
        assert code == 0, said
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in "12"]
    assert close(*([json.loads(line) for line in own] for own in logs), most=1e-3)
    found = [tmp_path / name / "eval/results_test.json" for name in "12"]
    one, two = (json.loads(path.read_text())[method]["decodings"] for path in found)
    assert close(one, two, most=1e-3)


def same(one: Path, two: Path) -> None:
    """Two runs with the same samples, and losses, results and weights equal but for rounding."""
    tables = sorted(path.relative_to(one) for path in one.rglob("sample/*/*.parquet"))
    rollouts = sorted(path.relative_to(one) for path in one.rglob("rollouts/*.parquet"))
    assert tables or rollouts
    for path in tables:
        assert read_table(one / path) == read_table(two / path)
    for path in rollouts:  # the others are what models make of these, equal but for rounding
        columns = ["row", "text", "tokens", "score"]
        assert read_table(one / path, columns) == read_table(two / path, columns)
    first, second = [
        [json.loads(line) for line in (each / "metrics.jsonl").read_text().splitlines()]
        for each in (one, two)
    ]
    assert close(first, second)
    assert close(*(json.loads((each / "summary.json").read_text()) for each in (one, two)))
    for path in one.rglob("model.safetensors"):
        a, b = (load_tensors(each / path.relative_to(one)) for each in (one, two))
        assert_close(a, b, rtol=1e-4, atol=1e-5)


def reached(path: Path, pattern: str, child: Forked) -> None:
    end = time.monotonic() + PATIENCE
    while not (path.is_dir() and any(path.glob(pattern))) and time.monotonic() < end:
        assert child.poll() is None, child.communicate(PATIENCE)[1]
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("lost", range(COUNT))
def test_a_killed_process_ends_the_run_which_then_goes_on(lost: int, tmp_path: Path):
    run = tmp_path / "run"
    children = started("summarize", run)
    reached(run, "rounds/00/.align.*.partial/state/manifest.json", children[0])
    children[lost].send_signal(signal.SIGKILL)
    found = ended(children)
    assert found[lost][0] == -signal.SIGKILL
    code, said = found[1 - lost]
    assert code == 1 and said.count("error: another process of this run has ended") == 1
    assert [code for code, _ in ended(started("summarize", run))] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_all_with_its_code(signum: int, code: int, tmp_path: Path):
    """They stop at the same update, whose state is saved."""
    run, more = tmp_path / "run", "reward.fit.checkpoint_every=0"
    children = started("summarize", run, more)
    reached(run, "rounds/00/sample", children[0])
    for child in children:
        child.send_signal(signum)
    found = ended(children)
    assert [each[0] for each in found] == [code, code], found
    assert [code for code, _ in ended(started("summarize", run, more))] == [0, 0]
