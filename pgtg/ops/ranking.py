"""Ranking: the Plackett–Luce loss (stage D) and measures of how well an order was recovered."""

import itertools
import math
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

ABSENT = -1e30  # evaluation of a candidate that is not in its group: e^ABSENT is 0
EXACT = 8  # most tied candidates whose orders are all counted; for more, Efron's approximation


def plackett_luce_nll(
    evaluations: Float[Tensor, "G J"],
    preference: Float[Tensor, "G J"],
    margin: Float[Tensor, " G"] | None = None,
) -> Float[Tensor, " G"]:
    """Negative log-likelihood of the preferred order under the Plackett–Luce model.

    Candidates are drawn best first, each with probability softmax(evaluations) over those left:
    sum_k [ logsumexp_{i>=k} e_i - e_k ]. Equal scores say nothing about the order of their
    candidates: the likelihood is the mean over all orders that the scores allow, exact where at
    most `EXACT` candidates tie, by Efron's approximation where more do. So a group whose scores
    are all equal has a constant loss. With two candidates this is Bradley–Terry.
    Scores of NaN are of candidates that are not there: groups of fewer than J, or not judged.

    Args:
        evaluations: Sequence evaluations e [nats], J candidates in each of G groups.
        preference: Judge's scores, higher is better, any unit: only their order matters. Order and
            ties are decided on the host: no device is waited for if the scores are there already.
        margin: Of groups of two [nats]: what the better one is to be above the other,
            -log sigmoid(e_better - e_other - margin).

    Returns:
        Loss per group [nats], at least 0. Gradients reach `evaluations` only.

    Raises:
        ValueError: Fewer than 2 candidates, an infinite score, or a margin of a larger group.

    Source: arXiv:2306.00398, Sec. 2.1 (D); listMLE, Xia et al. 2008. Ties as in the partial
    likelihood of proportional hazards, the same model: Kalbfleisch & Prentice 1973; Efron 1977.
    """
    preference = preference.cpu()
    absent = preference.isnan()
    if evaluations.shape[-1] < 2 or preference.isinf().any():
        raise ValueError(f"need >= 2 candidates and finite scores, got {tuple(preference.shape)}")
    if margin is not None and bool(((~absent).sum(-1) > 2)[margin.cpu() != 0].any()):
        raise ValueError("a margin is between two candidates, and a group has more")
    scores = preference.masked_fill(absent, -math.inf)  # they come last
    order = scores.argsort(dim=-1, descending=True, stable=True)
    if absent.any():
        evaluations = evaluations.masked_fill(absent.to(evaluations.device), ABSENT)
    ranked = evaluations.gather(-1, order.to(evaluations.device))
    if margin is not None:
        first = torch.arange(ranked.shape[-1], device=ranked.device) == 0
        ranked = ranked - first * margin.to(ranked)[:, None]
    remaining = ranked.flip(-1).logcumsumexp(-1).flip(-1)
    terms = remaining - ranked
    sorted_scores = scores.gather(-1, order)
    same = (sorted_scores[:, 1:] == sorted_scores[:, :-1]) & sorted_scores[:, 1:].isfinite()
    if absent.any():
        gone = sorted_scores.isinf().to(terms.device)
        terms, remaining = terms.masked_fill(gone, 0.0), remaining.masked_fill(gone, -math.inf)
    return (_with_ties(terms, ranked, remaining, same) if same.any() else terms).sum(-1)


def _with_ties(
    terms: Float[Tensor, "G J"],
    ranked: Float[Tensor, "G J"],
    remaining: Float[Tensor, "G J"],
    same: Bool[Tensor, "G I"],
) -> Float[Tensor, "G J"]:
    """The terms of each draw, those of tied candidates replaced by one for all of them.

    Args:
        same: On the host: whether the candidate in a place ties with the next one.
    """
    runs: dict[int, list[tuple[int, int]]] = {}  # by number of tied candidates: group, first place
    for group, row in enumerate(same.tolist()):
        place = 0
        for tie, links in itertools.groupby(row):
            links = len(list(links))
            if tie:
                runs.setdefault(links + 1, []).append((group, place))
            place += links
    for size, found in runs.items():
        group, first = torch.tensor(found, device=terms.device).T
        places = first[:, None] + torch.arange(size, device=terms.device)
        chosen = ranked[group[:, None], places]
        # what is left after them; -inf where they are the last
        rest = functional.pad(remaining, (0, 1), value=-math.inf)[group, first + size]
        values = torch.zeros_like(chosen)
        values[:, 0] = tied_nll(chosen, rest)
        terms = terms.index_put((group[:, None], places), values)
    return terms


def tied_nll(tied: Float[Tensor, "R M"], rest: Float[Tensor, " R"]) -> Float[Tensor, " R"]:
    """Negative log of the mean over all orders of M candidates of drawing them before the rest.

    Exact for M up to `EXACT`: with f(none) = 1, f(S) = sum_{i in S} e^{e_i} f(S - i) /
    (e^rest + sum_{j in S} e^{e_j}) adds up the orders in which the candidates S are drawn next.
    Above, Efron: sum_{l<M} log(e^rest + (1 - l/M) sum_j e^{e_j}) - sum_j e_j.

    Args:
        tied: Evaluations of the candidates that tie [nats].
        rest: Log-sum-exp of the evaluations of what is drawn after them [nats]; -inf: nothing is.

    Returns:
        [nats], at least log M!.
    """
    size = tied.shape[-1]
    orders = math.lgamma(size + 1)  # log of their number
    last = rest.isneginf()
    rest = torch.where(last, 0.0, rest)
    if size <= EXACT:
        log_sum = torch.zeros_like(tied[:, :1])  # f of the empty set
        for members, without in _subsets(size, tied.device):
            drawn = tied[:, members]  # [R, subsets of one size, their members]
            left = torch.logaddexp(rest[:, None], drawn.logsumexp(-1))
            log_sum = (drawn - left[..., None] + log_sum[:, without]).logsumexp(-1)
        found = orders - log_sum[:, 0]
    else:
        share = torch.arange(size, 0, -1, device=tied.device, dtype=tied.dtype).log() - math.log(
            size
        )
        left = torch.logaddexp(rest[:, None], tied.logsumexp(-1, keepdim=True) + share)
        found = left.sum(-1) - tied.sum(-1)
    surely = orders + (0 * tied).sum(-1)  # nothing is left but them; NaN stays NaN
    return torch.where(last, surely, found)


@lru_cache(maxsize=64)
def _subsets(
    size: int, device: torch.device
) -> list[tuple[Int[Tensor, "S C"], Int[Tensor, "S C"]]]:
    """For C = 1..size: all subsets of C of `size` members, and for each member where, among the
    subsets of C - 1, the one without it stands."""
    found: list[tuple[Tensor, Tensor]] = []
    before: dict[tuple[int, ...], int] = {(): 0}
    for count in range(1, size + 1):
        subsets = list(itertools.combinations(range(size), count))
        without = [[before[tuple(m for m in s if m != i)] for i in s] for s in subsets]
        found.append((torch.tensor(subsets, device=device), torch.tensor(without, device=device)))
        before = {subset: place for place, subset in enumerate(subsets)}
    return found


def informative(preference: Float[Tensor, "G J"]) -> Bool[Tensor, " G"]:
    """Groups whose scores are not all equal; the others say nothing about an order.

    Here and below a score of NaN is of a candidate that is not there.
    """
    absent = preference.isnan()
    highest = preference.masked_fill(absent, -math.inf).amax(-1)
    return highest > preference.masked_fill(absent, math.inf).amin(-1)


def pair_accuracy(evaluations: Float[Tensor, "G J"], preference: Float[Tensor, "G J"]) -> float:
    """Share [0, 1] of the strictly ordered pairs within groups that `evaluations` orders alike.

    Pairs with equal judge's scores are left out; an evaluation that ties on a pair gets one half.
    Without any ordered pair, and where an evaluation is NaN, the result is NaN.
    """
    won, pairs, known = _pairs(evaluations, preference)
    return won.item() / 2 / pairs.item() if bool(known) else float("nan")


def share_of_pairs(
    evaluations: Float[Tensor, "G J"], preference: Float[Tensor, "G J"]
) -> Float[Tensor, ""]:
    """`pair_accuracy`, left on the device."""
    won, pairs, known = _pairs(evaluations, preference)
    return (won / (2 * pairs)).masked_fill(~known, math.nan)


def _pairs(
    evaluations: Float[Tensor, "G J"], preference: Float[Tensor, "G J"]
) -> tuple[Int[Tensor, ""], Int[Tensor, ""], Bool[Tensor, ""]]:
    """Halves of pairs won, ordered pairs, and whether that says anything."""
    preference = preference.to(evaluations.device)
    ordered = preference[:, :, None] > preference[:, None, :]
    right = evaluations[:, :, None] > evaluations[:, None, :]
    ties = evaluations[:, :, None] == evaluations[:, None, :]  # infinite ones as well
    won, pairs = (2 * right.int() + ties.int()).where(ordered, 0).sum(), ordered.sum()
    broken = (evaluations.isnan() & ~preference.isnan()).any()
    return won, pairs, (pairs > 0) & ~broken


def pair_margins(
    evaluations: Float[Tensor, "G J"], preference: Float[Tensor, "G J"]
) -> Float[Tensor, " P"]:
    """e of the better candidate less e of the other one, of each strictly ordered pair [nats]."""
    ordered = preference[:, :, None] > preference[:, None, :]
    return (evaluations[:, :, None] - evaluations[:, None, :])[ordered]


def calibration_error(margins: Float[Tensor, " P"], *, bins: int = 10) -> float:
    """Expected calibration error [0, 1] of the Bradley–Terry probabilities sigmoid(margin).

    Each pair's confidence is the probability of the side that it favours, in [0.5, 1]; the error is
    the mean over pairs of |share right - mean confidence| of their bin, bins of equal width.
    Naeini et al. 2015. NaN without a pair, or with a NaN.
    """
    if not margins.numel() or margins.isnan().any():
        return float("nan")
    confidence = margins.abs().double().sigmoid()
    right = torch.where(margins == 0, 0.5, (margins > 0).double())
    place = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    off = torch.zeros(bins, dtype=torch.double).index_add(0, place, right - confidence)
    return (off.abs().sum() / len(margins)).item()


def kendall_tau(evaluations: Float[Tensor, "G J"], preference: Float[Tensor, "G J"]) -> float:
    """Goodman–Kruskal form of Kendall's tau [-1, 1]: concordant minus discordant over their sum.

    Pairs that the judge ties are left out, so tau = 2 * pair accuracy - 1.
    """
    return 2 * pair_accuracy(evaluations, preference) - 1


def top1_accuracy(evaluations: Float[Tensor, "G J"], preference: Float[Tensor, "G J"]) -> float:
    """Share [0, 1] of informative groups whose highest evaluation is one of the judge's best.

    Without any such group, and where an evaluation is NaN, the result is NaN.
    """
    keep, absent = informative(preference), preference.isnan()
    if not keep.any() or (evaluations.isnan() & ~absent).any():
        return float("nan")
    evaluations = evaluations.masked_fill(absent, -math.inf)[keep]
    preference = preference.masked_fill(absent, -math.inf)[keep]
    chosen = preference.gather(-1, evaluations.argmax(-1, keepdim=True)).squeeze(-1)
    return (chosen == preference.max(-1).values).double().mean().item()


def auc(positive: Float[Tensor, " P"], negative: Float[Tensor, " Q"]) -> float:
    """Probability [0, 1] that a value drawn from `positive` is above one from `negative`.

    Ties count one half (Mann–Whitney). NaN if either side is empty, or something is NaN.
    """
    if positive.numel() == 0 or negative.numel() == 0:
        return float("nan")
    if positive.isnan().any() or negative.isnan().any():
        return float("nan")
    values, rank = torch.cat([positive, negative]).double().unique(return_inverse=True)
    counts = torch.bincount(rank, minlength=values.numel()).double()
    mid_rank = counts.cumsum(0) - (counts - 1) / 2  # mean rank of each distinct value, from 1
    total = mid_rank[rank[: positive.numel()]].sum()
    p, q = positive.numel(), negative.numel()
    return ((total - p * (p + 1) / 2) / (p * q)).item()


def stratified_auc(
    positive: Float[Tensor, " P"],
    negative: Float[Tensor, " Q"],
    stratum_of_positive: Float[Tensor, " P"],
    stratum_of_negative: Float[Tensor, " Q"],
    *,
    strata: int = 10,
) -> float:
    """AUC within strata of a nuisance variable, weighted by the pairs in each stratum.

    What is left of the separation once, for example, a token's log-probability is held fixed.
    The strata are quantiles of the variable over both sides together.
    """
    nuisance = torch.cat([stratum_of_positive, stratum_of_negative]).double()
    if positive.numel() == 0 or negative.numel() == 0 or not nuisance.isfinite().all():
        return float("nan")
    edges = nuisance.quantile(torch.linspace(0, 1, strata + 1, dtype=torch.double)[1:-1])
    of_positive = torch.bucketize(stratum_of_positive.double(), edges)
    of_negative = torch.bucketize(stratum_of_negative.double(), edges)
    total, pairs = 0.0, 0
    for s in range(strata):
        p, q = positive[of_positive == s], negative[of_negative == s]
        if p.numel() and q.numel():
            total += auc(p, q) * p.numel() * q.numel()
            pairs += p.numel() * q.numel()
    return total / pairs if pairs else float("nan")
