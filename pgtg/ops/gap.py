"""The piecewise gap: how much a classifier LM, led by a prompt, prefers the right label word."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def gap_scores(
    log_probs: Float[Tensor, "*P E C"],
    labels: Int[Tensor, " E"],
    correct: float = 200.0,
    wrong: float = 180.0,
    *,
    ties: bool = False,
) -> Float[Tensor, "*P E"]:
    """Score of each example: correct * gap where the gap is positive, else wrong * gap.

    gap = p(label) - max over the other label words, p = softmax over the label words only.

    Args:
        log_probs: Log-probabilities of C label words for E examples [nats]; unnormalised ones do.
        labels: Number of each example's class, in 0..C-1.
        correct: Weight of a gap above 0, where the right word is the likeliest.
        wrong: Weight of the others.
        ties: As RLPrompt's code, which leaves out the own word by its probability: other words
            that tie with it are left out too, and where none is left the gap is p(label) + 1.

    Returns:
        Scores in [-wrong, correct]; the prompt's score is their mean over the examples.

    Raises:
        ValueError: Fewer than 2 label words, or a label that is none of them.

    Source: arXiv:2306.00398, prompt task; the reward of RLPrompt, arXiv:2205.12548.
    """
    _check(log_probs, labels)
    p = log_probs.softmax(-1)
    index = labels.expand(p.shape[:-1])[..., None]
    own = p.gather(-1, index).squeeze(-1)
    others = p.scatter(-1, index, -1.0)  # a probability is never below -1
    if ties:
        others = torch.where(p == own[..., None], -1.0, p)
    gap = own - others.max(-1).values
    return torch.where(gap > 0, correct * gap, wrong * gap)


def accuracy(log_probs: Float[Tensor, "*P E C"], labels: Int[Tensor, " E"]) -> Float[Tensor, "*P"]:
    """Share of examples whose own label word is the likeliest, in [0, 1]; of equals, the first.

    Raises:
        ValueError: As `gap_scores`.
    """
    _check(log_probs, labels)
    return (log_probs.argmax(-1) == labels).double().mean(-1)


def balanced_entropy(log_probs: Float[Tensor, "E C"], labels: Int[Tensor, " E"]) -> float:
    """100 x mean over the classes of their accuracy, to 2 decimals, + 10 x entropy of the guesses.

    The entropy [nats] is of the shares in which the C words are guessed: it tells apart prompts
    that guess one class for all. Classes without an example are left out of the mean.

    Raises:
        ValueError: As `gap_scores`.

    Source: GrIPS, arXiv:2203.07281, Sec. 3.2, and its released code.
    """
    _check(log_probs, labels)
    guesses = log_probs.argmax(-1)
    own = [(guesses[labels == c] == c).double().mean().item() for c in labels.unique().tolist()]
    shares = guesses.bincount(minlength=log_probs.shape[-1]).double() / len(guesses)
    entropy = torch.special.entr(shares).sum().item()
    return 100 * round(sum(own) / len(own), 2) + 10 * entropy


def _check(log_probs: Tensor, labels: Tensor) -> None:
    classes = log_probs.shape[-1]
    if classes < 2 or bool(((labels < 0) | (labels >= classes)).any()):
        raise ValueError(
            f"need >= 2 label words and labels below their number, got {tuple(log_probs.shape)} "
            f"and labels {labels.tolist()}"
        )
