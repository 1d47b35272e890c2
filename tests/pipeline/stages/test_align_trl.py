"""Our comparisons of two, with a last-token aggregator, against TRL's RewardTrainer.

Skipped without TRL, the extra `trl`: `pip install -e '.[trl]'`.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pgtg.config.registry import AggregatorSpec
from pgtg.data.comparisons import of_sources
from pgtg.data.generations import ragged
from pgtg.data.pairs import read_rankings
from pgtg.data.splits import Tally
from pgtg.models.codec import Codec
from pgtg.models.loading import load_language_model
from pgtg.models.reward import HeadSpec, LinearHead, build_reward_model
from pgtg.ops.aggregate import Aggregator
from pgtg.pipeline.stages.align import PlackettLuce, group_batch
from pgtg.types import Generations
from tests.support.tiny_exports import llama, tiny_causal

PAIRS = 8


def last(rewards: Any, mask: Any, temperature: float, length_normalized: bool):
    """The raw output at the last token, which is all that TRL's reward models have."""
    place = (mask * torch.arange(mask.shape[1])).argmax(-1)
    return rewards.gather(1, place[:, None])[:, 0].logit()  # the bound is a sigmoid


SPEC = AggregatorSpec("last", "the last token alone", last, scaled=False)


@pytest.mark.real
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("margins", [False, True])
def test_pairs_have_the_loss_and_gradient_of_trls_reward_trainer(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, margins: bool
):
    """From one table of pairs, each by its own tokenization, batches, padding and loss."""
    trl: Any = pytest.importorskip("trl", reason="needs TRL: pip install -e '.[trl]'")
    from datasets import Dataset

    folder = llama(tmp_path_factory)
    cfg = tiny_causal(folder, f"data.limit={{train: {PAIRS}}}")
    rankings, _ = read_rankings(cfg.data, "train", Tally())
    pairs = [one for one in rankings if one.scores[0] != one.scores[1]]
    assert len(pairs) == PAIRS
    margin = torch.linspace(0.1, 0.8, PAIRS, dtype=torch.float64) if margins else None

    lm, tokenizer = load_language_model(str(folder))
    codec = Codec(tokenizer, False, "", "", "", 64, 64, tuple(lm.end_ids), cut_start=True)
    ours = build_reward_model(lm, HeadSpec("linear", "sigmoid", 1), 0).eval()
    generations = Generations(
        source_ids=[one.id for one in pairs],
        sources=[codec.encode_source(one.prompt)[0] for one in pairs],
        origin=[n for n in range(PAIRS) for _ in range(2)],
        tokens=[codec.encode_target(text)[0] for one in pairs for text in one.completions],
        texts=[text for one in pairs for text in one.completions],
        scores=[score for one in pairs for score in one.scores],
        groups=ragged([[2 * n, 2 * n + 1] for n in range(PAIRS)]),
        margins=margin,
    )
    batch = group_batch(generations, of_sources(generations), torch.device("cpu"))

    made: Any = AutoModelForSequenceClassification
    theirs = made.from_pretrained(folder, num_labels=1, pad_token_id=1)
    head = ours.head
    assert isinstance(head, LinearHead)
    with torch.no_grad():
        head.score.weight.copy_(theirs.score.weight)
        head.score.bias.zero_()
    rows = [
        {"prompt": one.prompt, "chosen": one.completions[0], "rejected": one.completions[1]}
        | ({} if margin is None else {"margin": margin[n].item()})
        for n, one in enumerate(pairs)
    ]
    options: dict[str, Any] = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    trainer = trl.RewardTrainer(
        model=theirs,
        args=trl.RewardConfig(
            str(tmp_path), per_device_train_batch_size=PAIRS, report_to=[], **options
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    expected = trainer.compute_loss(theirs, next(iter(trainer.get_train_dataloader())))
    objective = PlackettLuce(ours, Aggregator(SPEC.load(), SPEC.scaled))
    found = objective(batch, objective.count(batch)).value
    assert_close(found, expected, rtol=0, atol=1e-5)
    assert found.item() > 0.05
    found.backward()
    expected.backward()
    assert_close(head.score.weight.grad, theirs.score.weight.grad, rtol=1e-4, atol=1e-5)
