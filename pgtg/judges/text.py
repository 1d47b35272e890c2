"""The text judges, on top of the metrics. No torch: judge workers start fast."""

from collections.abc import Callable, Sequence
from functools import partial

from pgtg.config import JudgeConfig
from pgtg.config.registry import JUDGES
from pgtg.judges import TextJudge
from pgtg.metrics.chrf import build_chrf
from pgtg.metrics.meteor import Meteor, build_meteor, build_meteor_stem
from pgtg.metrics.rouge import TYPES, build_rouge


def _meteor_judge(build: Callable[[str, str], Meteor], splitter: str, words: str) -> TextJudge:
    meteor = build(splitter, words)
    return TextJudge(meteor.name, meteor.pair, meteor.describe(), meteor.unread)


def _rouge_judge(column: str, splitter: str, words: str) -> TextJudge:
    rouge = build_rouge(splitter, (column,), words)

    def pair(text: str, references: Sequence[str]) -> float:
        return rouge.score([text], [references])[column][0]  # 0 where nothing is read

    return TextJudge(column, pair, rouge.describe(), rouge.unread)


def _chrf_judge(splitter: str, words: str) -> TextJudge:
    chrf = build_chrf()
    return TextJudge(chrf.name, chrf.pair, chrf.describe())


meteor = partial(_meteor_judge, build_meteor)
meteor_stem = partial(_meteor_judge, build_meteor_stem)
rouge1, rouge2, rougeL, rougeLsum = (partial(_rouge_judge, column) for column in TYPES)
chrf = _chrf_judge


def build_judge(cfg: JudgeConfig, splitter: str = "regex", words: str = "default") -> TextJudge:
    """The judge that the config names.

    Args:
        splitter: Sentence splitter, see `pgtg.metrics.sentences`.
        words: What is a word, see `pgtg.metrics.words`.

    Raises:
        ConfigError: Unknown judge, splitter or tokenizer.
        MissingResourceError: A resource is not on this machine; says what fixes it.
    """
    return JUDGES[cfg.name].load()(splitter, words)
