"""Ranking: the Plackett–Luce loss (stage D) and measures of how well an order was recovered."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def plackett_luce_nll(
    evaluations: Float[Tensor, "G J"], preference: Float[Tensor, "G J"]
) -> Float[Tensor, " G"]:
    """Negative log-likelihood of the preferred order under the Plackett–Luce model.

    Candidates are drawn best first, each with probability softmax(evaluations) over those left:
    sum_k [ logsumexp_{i>=k} e_i - e_k ]. Equal scores keep the candidates' own order.

    Args:
        evaluations: Sequence evaluations e [nats], J candidates in each of G groups.
        preference: Judge's scores, higher is better, any unit: only their order matters.

    Returns:
        Loss per group [nats], at least 0. Gradients reach `evaluations` only.

    Raises:
        ValueError: Fewer than 2 candidates, or a score that is not finite.

    Source: arXiv:2306.00398, Sec. 2.1 (D); listMLE, Xia et al. 2008.
    """
    if evaluations.shape[-1] < 2 or not preference.isfinite().all():
        raise ValueError(f"need >= 2 candidates and finite scores, got {tuple(preference.shape)}")
    ranked = evaluations.gather(-1, preference.argsort(dim=-1, descending=True, stable=True))
    remaining = ranked.flip(-1).logcumsumexp(-1).flip(-1)
    return (remaining - ranked).sum(-1)


def informative(preference: Float[Tensor, "G J"]) -> Bool[Tensor, " G"]:
    """Groups whose scores are not all equal; the others say nothing about an order."""
    return (preference != preference[:, :1]).any(-1)


def pair_accuracy(evaluations: Float[Tensor, "G J"], preference: Float[Tensor, "G J"]) -> float:
    """Share [0, 1] of the strictly ordered pairs within groups that `evaluations` orders alike.

    Pairs with equal judge's scores are left out; an evaluation that ties on a pair gets one half.
    Without any ordered pair, and wherever something is NaN, the result is NaN.
    """
    ordered = preference[:, :, None] > preference[:, None, :]
    right = evaluations[:, :, None] > evaluations[:, None, :]
    ties = evaluations[:, :, None] == evaluations[:, None, :]  # infinite ones as well
    if not ordered.any() or preference.isnan().any() or evaluations.isnan().any():
        return float("nan")
    return (right[ordered].double() + ties[ordered].double() / 2).mean().item()


def kendall_tau(evaluations: Float[Tensor, "G J"], preference: Float[Tensor, "G J"]) -> float:
    """Goodman–Kruskal form of Kendall's tau [-1, 1]: concordant minus discordant over their sum.

    Pairs that the judge ties are left out, so tau = 2 * pair accuracy - 1.
    """
    return 2 * pair_accuracy(evaluations, preference) - 1


def top1_accuracy(evaluations: Float[Tensor, "G J"], preference: Float[Tensor, "G J"]) -> float:
    """Share [0, 1] of informative groups whose highest evaluation is one of the judge's best.

    Without any such group, and wherever something is NaN, the result is NaN.
    """
    keep = informative(preference)
    if not keep.any() or preference.isnan().any() or evaluations.isnan().any():
        return float("nan")
    evaluations, preference = evaluations[keep], preference[keep]
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
