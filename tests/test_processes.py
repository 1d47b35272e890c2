"""What several processes exchange; a training dealt out among them; and they end together."""

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_loop import CFG, cut, logged, network, rows, run, weights
from torch.testing import assert_close

from pgtg import processes
from pgtg.errors import DataError
from pgtg.processes import PeerLost

COUNT = 2
PATIENCE = 90.0  # s


def environment(rank: int, port: int) -> dict[str, str]:
    """What a launcher tells the process of this rank, on one machine."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": COUNT, "LOCAL_WORLD_SIZE": COUNT}
    values = {name: str(value) for name, value in names.items()}
    return values | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def together(work: Callable[..., None], folder: Path) -> list[int | None]:
    """Exit codes of the processes that each called `work(rank, folder)`."""
    context, port = multiprocessing.get_context("forkserver"), free_port()
    context.set_forkserver_preload(["accelerate", "pgtg.loop"])
    members = [
        context.Process(target=_member, args=(work, rank, port, folder)) for rank in range(COUNT)
    ]
    for member in members:
        member.start()
    for member in members:
        member.join(PATIENCE)
    return [member.exitcode for member in members]


def _member(work: Callable[..., None], rank: int, port: int, folder: Path) -> None:
    os.environ.update(environment(rank, port))
    processes.join("cpu")
    assert (processes.count(), processes.is_first()) == (COUNT, rank == 0)
    work(rank, folder)


def test_one_process_is_alone():
    assert (processes.count(), processes.is_first(), processes.key()) == (1, True, ())
    assert processes.own(range(3)) == [0, 1, 2] == list(processes.share(range(3)))
    assert processes.spread(lambda items: [i + 1 for i in items], [1, 2]) == [2, 3]
    assert processes.everyone(lambda: "a") == ["a"] and processes.first(max)(1, 2) == 2


def exchange(rank: int, folder: Path) -> None:
    assert processes.own(range(5)) == [[0, 2, 4], [1, 3]][rank]
    assert list(processes.share(range(5))) == [[0, 1], [2, 3, 4]][rank]
    for size in (5, 1, 0):  # also with less than one item for each
        assert processes.spread(lambda items: [-i for i in items], range(size)) == [
            -i for i in range(size)
        ]
    assert processes.everyone(lambda: rank) == [0, 1]
    alone = processes.first(lambda: (rank, processes.count()))()
    assert alone == (0, 1)  # the first, as if there were no other
    assert processes.agreed_signal(signal.SIGTERM if rank else None) == signal.SIGTERM
    assert processes.agreed_signal(None) is None
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    parameters[0].grad = torch.full((2,), 1.0 + rank)
    if rank:
        parameters[1].grad = torch.ones(2)
    processes.add_up(parameters)
    found = [None if p.grad is None else p.grad.tolist() for p in parameters]
    assert found == [[3, 3], [1, 1], None]


def fail_in_one(rank: int, folder: Path) -> None:
    def work() -> None:
        if rank:
            raise DataError("only here")

    with pytest.raises(DataError, match="only here") as caught:
        processes.everyone(work)
    assert processes.tells(caught.value) == (rank == 0)

    def refuse() -> None:
        raise DataError("by the first")

    with pytest.raises(DataError, match="by the first"):
        processes.first(refuse)()


def test_what_is_divided_comes_back_whole_and_errors_are_shared(tmp_path: Path):
    assert together(exchange, tmp_path) == [0, 0]
    assert together(fail_in_one, tmp_path) == [0, 0]


def fit_here(rank: int, folder: Path) -> None:
    """Three micro-batches for two processes."""
    model = network()
    cfg = replace(CFG, accumulate=3)
    windows = {"windows": lambda step: processes.own(cut(rows(step), 3, 2, 3))}
    run(model, folder / str(rank) / "fit", cfg, **windows)
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
    processes.everyone(lambda: None)
    if rank:
        os.kill(os.getpid(), signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(PeerLost, match="another process of this run has ended"):
        processes.everyone(lambda: None)
    assert time.monotonic() - start < 10


def test_a_process_that_is_killed_ends_the_other(tmp_path: Path):
    assert together(lose_one, tmp_path) == [0, -signal.SIGKILL]
