"""How far the judge's score of a prompt can be foretold: `python benchmarks/probe.py RUN...`

For each finished prompt search with the control `random`: ridge regression from the writer LM's
states, averaged over a prompt's tokens, to the judge's score, for random prompts only. Printed is
the share of pairs of held-out prompts in the judge's order, chance being 50 %, by layer: mean over
random splits, with the ridge weight that does best, so it is an upper bound of such a probe. What
no probe foretells from so few prompts, no reward model can learn from them either.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from pgtg.config.compose import run_config
from pgtg.data.generations import read_generations
from pgtg.models.loading import load_language_model
from pgtg.ops.ranking import pair_accuracy
from pgtg.runs.folder import Artifact, RunFolder

HELD, SPLITS, RIDGES = 1 / 3, 20, (0.1, 1.0, 10.0)


def judged(run: Path) -> tuple[list[list[int]], list[int], np.ndarray]:
    """Distinct random prompts of a run, what each continues, and the judge's scores."""
    folders = [run / "rounds" / "00" / "sample", *run.glob("controls/random/*/sample")]
    scores: dict[tuple[int, ...], float] = {}
    source: list[int] = []
    for folder in folders:
        made = read_generations(Artifact(folder), "train")
        scores |= {tuple(t): s for t, s in zip(made.tokens, made.scores, strict=True)}
        source = made.sources[0]
    return [list(tokens) for tokens in scores], source, np.array(list(scores.values()))


@torch.no_grad()
def states(path: str, prompts: list[list[int]], source: list[int]) -> list[np.ndarray]:
    """[P, D] of each layer: states after the prompts' tokens, averaged over them."""
    lm, _ = load_language_model(path)
    ids = torch.tensor([[*source, *prompt] for prompt in prompts])
    layers = lm.model(input_ids=ids, output_hidden_states=True).hidden_states
    return [layer[:, len(source) :].mean(1).double().numpy() for layer in layers]


def kernel_of(features: np.ndarray) -> np.ndarray:
    """[P, P] inner products of the features, each scaled to mean 0 and standard deviation 1."""
    x = (features - features.mean(0)) / (features.std(0) + 1e-6)
    return x @ x.T / x.shape[1]


def pairs(kernel: np.ndarray, scores: np.ndarray, ridge: float, seed: int) -> float:
    """Share of held-out pairs in the judge's order, for one random split."""
    order = np.random.default_rng(seed).permutation(len(scores))
    held, seen = np.split(order, [round(HELD * len(order))])
    weights = np.linalg.solve(
        kernel[np.ix_(seen, seen)] + ridge * np.eye(len(seen)), scores[seen] - scores[seen].mean()
    )
    guesses = torch.from_numpy(kernel[np.ix_(held, seen)] @ weights)
    return pair_accuracy(guesses[None], torch.from_numpy(scores[held])[None])


def main(runs: list[Path]) -> None:
    for run in runs:
        saved = RunFolder(run).open().config()
        cfg = run_config("prompt", saved=saved)
        assert cfg.policy.path is not None
        prompts, source, scores = judged(run)
        print(
            f"{run}: {len(prompts)} random prompts, score {scores.mean():.1f} (sd "
            f"{scores.std():.1f}, best {scores.max():.1f})"
        )
        for number, features in enumerate(states(cfg.policy.path, prompts, source)):
            kernel = kernel_of(features)
            found = {
                ridge: 100
                * float(np.mean([pairs(kernel, scores, ridge, s) for s in range(SPLITS)]))
                for ridge in RIDGES
            }
            best = max(found, key=lambda ridge: found[ridge])
            print(f"  layer {number:2d}: {found[best]:.1f} % of held-out pairs (ridge {best:g})")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
