"""The processes of a run: one, or several that `accelerate launch` or `torchrun` started.

All run the same code side by side, on the same run folder:

    share, own, spread   independent items are divided; what is random is keyed by item, so that
                         the result is that of one process
    add_up               gradients are added; a loss is a mean over the whole window, its parts sum
    sharding             whether each keeps a part of the weights in training (`models.sharding`)
    first                what must happen once (every write, every decision that rests on the disk)
                         is done by the first process, and the others get what came of it

A process that is alone takes the same way and pays nothing. An error in one is raised in all; one
that ends without a word fails the others at their next exchange (`PeerLost`). Exchanges of objects
are in memory of the CPU also where gradients are on GPUs, so that a lost process shows at once.
"""

import atexit
import contextlib
import datetime
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from pgtg.errors import ConfigError, PgtgError
from pgtg.runtime.signals import Interrupted

if TYPE_CHECKING:
    from torch import nn

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")
LONGEST = datetime.timedelta(days=7)  # that the others wait for what the first does alone
# accelerate's fsdp_reshard_after_forward; also by FSDP1's names, of which older ones pass a default
RESHARD = {"true": True, "full_shard": True, "false": False, "shard_grad_op": False}
BACKENDS = ("gloo", "NCCL")  # whose name stands in the errors of an exchange that fails
LOST = (
    "another process of this run has ended, so this one ends too; what is saved stays: "
    "give the same command again to resume"
)


class PeerLost(PgtgError):
    """Another process of the run has ended; what it could say stands in its own output."""


@dataclass(frozen=True)
class Sharding:
    """How weights are divided among the processes of a training."""

    reshard: bool  # free a layer's whole weights between its forward and its backward pass


@dataclass(frozen=True)
class World:
    """This process among those of its run."""

    rank: int = 0
    size: int = 1
    device: str | None = None  # that the launcher means for it, if there are several
    sharding: Sharding | None = None  # None: each holds all weights


_world = World()


def join(device: str) -> None:
    """Be one of several, where a launcher has started this process as one of several.

    Args:
        device: The config's; "cpu" keeps the processes off the GPUs.

    Raises:
        ConfigError: The launcher asks for something that is set elsewhere, or not possible.
    """
    global _world
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _world.size > 1:
        return
    import torch
    from accelerate import PartialState

    cpu = device == "cpu" or not torch.accelerator.is_available()
    backend = {"backend": "cuda:nccl,cpu:gloo"} if not cpu and torch.cuda.is_available() else {}
    state = PartialState(cpu=cpu, timeout=LONGEST, **backend)
    atexit.register(state.destroy_process_group)
    _world = World(state.process_index, state.num_processes, str(state.device))
    (sharding, *_) = everyone(_asked_for)
    _world = replace(_world, sharding=sharding)


def _asked_for() -> Sharding | None:
    """What `accelerate launch` was told about sharding, in its environment variables."""
    from accelerate.utils import parse_flag_from_env as flag

    problems = []
    if (found := os.environ.get("ACCELERATE_MIXED_PRECISION", "no")) != "no":
        problems.append(
            f"accelerate's mixed_precision: found {found}, expected no: pgtg's own "
            f"reward.fit.precision={found} improve.precision={found} do it"
        )
    reshard = None
    if flag("ACCELERATE_USE_FSDP"):
        reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower()
        if reshard not in RESHARD:
            problems.append(
                f"accelerate's fsdp_reshard_after_forward: found {reshard}, expected true or false"
            )
        if (found := os.environ.get("FSDP_VERSION", "1")) != "2":
            problems.append(f"accelerate's fsdp_version: found {found}, expected 2")
        if flag("FSDP_OFFLOAD_PARAMS"):
            problems.append("accelerate's fsdp_offload_params: found true, expected false")
        if flag("FSDP_ACTIVATION_CHECKPOINTING"):
            problems.append(
                "accelerate's fsdp_activation_checkpointing: found true, expected false: pgtg's "
                "own reward.fit.gradient_checkpointing=true and improve.gradient_checkpointing=true"
            )
    if problems:
        raise ConfigError(*problems)
    if reshard is None:
        return None
    # else Transformers would leave the weights of all but the first process empty
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    return Sharding(RESHARD[reshard])


def count() -> int:
    """Processes of the run."""
    return _world.size


def is_first() -> bool:
    """Whether this process writes and speaks for all."""
    return _world.rank == 0


def device() -> str | None:
    """The device that the launcher means for this process; None for one that is alone."""
    return _world.device


def sharding() -> Sharding | None:
    """How weights are divided in training; None where each process holds them all."""
    return _world.sharding


def key() -> tuple[int, ...]:
    """Tells the random streams of processes apart where they must differ; empty for one alone."""
    return (_world.rank,) if _world.size > 1 else ()


def own(items: Sequence[T]) -> list[T]:
    """This process's items: those that are dealt out to it in turn."""
    return list(items[_world.rank :: _world.size])


def most(items: Sequence[Any]) -> int:
    """The largest number of items that a process is dealt: that of the first."""
    return -(-len(items) // _world.size)


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's consecutive part of the items."""
    rank, size = _world.rank, _world.size
    return items[len(items) * rank // size : len(items) * (rank + 1) // size]


def spread(work: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T]) -> list[R]:
    """`work` on this process's share of the items; the results of all, in the items' order.

    Args:
        work: Returns one result for each item it is given, in their order. Results go from process
            to process, so tensors among them lie on the CPU.
    """
    mine = share(items)
    parts = everyone(lambda: list(work(mine)) if len(mine) else [])
    return [result for part in parts for result in part]


def everyone(work: Callable[[], R]) -> list[R]:
    """What `work` returns in each process, in their order. An error in one is raised in all."""
    if _world.size == 1:
        return [work()]
    import torch.distributed as dist

    outcomes: list[Any] = [None] * _world.size
    own = _outcome(work)
    with _talking():
        dist.all_gather_object(outcomes, own)
    return [_result(outcome) for outcome in outcomes]


def first(work: Callable[P, R]) -> Callable[P, R]:
    """Decorates what the first process does alone, as if there were no other.

    It begins when all have come here, so that nothing is changed on the disk which another still
    reads. The others wait until it is done; they return what it returned, or raise what it raised.
    """

    @functools.wraps(work)
    def led(*args: P.args, **kwargs: P.kwargs) -> R:
        if _world.size == 1:
            return work(*args, **kwargs)
        import torch.distributed as dist

        everyone(lambda: None)
        outcome: list[Any] = [None]
        if _world.rank == 0:
            with _alone():
                outcome = [_outcome(lambda: work(*args, **kwargs))]
        with _talking():
            dist.broadcast_object_list(outcome, src=0)
        return _result(outcome[0])

    return led


def add_up(parameters: Sequence["nn.Parameter"]) -> None:
    """Makes each gradient the sum over the processes; one that none of them has stays None."""
    if _world.size == 1:
        return
    import torch
    import torch.distributed as dist

    flags = everyone(lambda: [parameter.grad is not None for parameter in parameters])
    gradients = []
    for parameter, *there in zip(parameters, *flags, strict=True):
        if any(there):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    with _talking():
        for gradient in gradients:
            dist.all_reduce(gradient)


def agreed_signal(pending: int | None) -> int | None:
    """The signal that stops the run if any process has got one: all stop at the same update."""
    return max((told for told in everyone(lambda: pending) if told is not None), default=None)


def tells(error: BaseException) -> bool:
    """Whether this process says an error to the user: what all know, the first one says."""
    return is_first() or not (isinstance(error, Interrupted) or getattr(error, "shared", False))


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    global _world
    world, _world = _world, World()
    try:
        yield
    finally:
        _world = world


@contextlib.contextmanager
def _talking() -> Iterator[None]:
    """What fails when another process is gone, as an error that says so."""
    from torch.distributed import DistError

    try:
        yield
    except RuntimeError as error:
        if type(error) is not RuntimeError and not isinstance(error, DistError):
            raise  # a subclass is a fault of our own
        raise PeerLost(LOST) from error


@contextlib.contextmanager
def _passing() -> Iterator[None]:
    """The same where only some of what is done talks to other processes: passes on shards."""
    try:
        yield
    except RuntimeError as error:
        if not any(name in str(error) for name in BACKENDS):
            raise
        raise PeerLost(LOST) from error


def _outcome(work: Callable[[], R]) -> tuple[bool, R | PgtgError]:
    try:
        with _passing():
            return True, work()
    except PeerLost:
        raise
    except PgtgError as error:
        return False, error


def _result(outcome: tuple[bool, Any]) -> Any:
    done, value = outcome
    if not done:
        value.shared = True
        raise value
    return value
