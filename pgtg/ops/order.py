"""In which order a training reads its examples: at random, yet texts of similar length together.

A micro-batch is padded to its longest text. Drawn purely at random, a fifth to a quarter of what an
encoder reads is padding; sorted by length over the whole data, batches would no longer be random.
Between the two: the examples of some updates in a row are sorted together.
"""

from collections.abc import Sequence

import numpy as np

from pgtg.ops.sampling import derive_seed


def dealt(
    lengths: Sequence[int] | np.ndarray, *, micro_batch: int, updates: int, seed: int
) -> list[list[list[int]]]:
    """The examples of some updates in a row, each once: sorted by length, cut into micro-batches,
    and the micro-batches dealt out to the updates at random.

    Args:
        lengths: Tokens of each example, in the random order of the epoch: equal ones keep it.
        micro_batch: Examples of a micro-batch; one of them, the longest, may hold fewer.
        updates: How many updates share the examples; at most one for each micro-batch.
        seed: Decides who gets what.

    Returns:
        For each update, for each of its micro-batches, the examples' places in `lengths`. The
        updates' numbers of micro-batches differ by at most one.
    """
    order = np.asarray(lengths).argsort(kind="stable")
    parts = [order[i : i + micro_batch].tolist() for i in range(0, len(order), micro_batch)]
    shuffled = np.random.default_rng(seed).permutation(len(parts))
    return [[parts[i] for i in own] for own in np.array_split(shuffled, updates)]


def of_epoch(
    lengths: Sequence[int] | np.ndarray,
    place: int,
    *,
    micro_batch: int,
    accumulate: int,
    bucket: int,
    seed: int,
) -> list[list[int]]:
    """Micro-batches of one update of an epoch.

    Args:
        lengths: Tokens of each of the epoch's examples, in its random order.
        place: The update's number in the epoch.
        bucket: Updates whose examples are sorted together; 0 and 1 leave the order as it is.
        seed: The epoch's.

    Returns:
        Places in `lengths`. An epoch has ceil(examples / (micro_batch * accumulate)) updates, and
        each example stands in exactly one of them.
    """
    size = micro_batch * accumulate
    if bucket <= 1:
        rows = range(place * size, min((place + 1) * size, len(lengths)))
        return [list(rows[i : i + micro_batch]) for i in range(0, len(rows), micro_batch)]
    number, own = divmod(place, bucket)
    start = number * bucket * size
    among = lengths[start : start + bucket * size]
    updates = -(-len(among) // size)
    key = derive_seed(seed, number)
    chosen = dealt(among, micro_batch=micro_batch, updates=updates, seed=key)[own]
    return [[start + row for row in part] for part in chosen]
