"""The judges, in words; imports nothing heavy."""

from pgtg.config.registry import JudgeSpec
from pgtg.config.schema import (
    ClassifierJudgeConfig,
    JudgeConfig,
    LLMJudgeConfig,
    RewardModelConfig,
)

JUDGES = (
    JudgeSpec(
        "none",
        "nothing is judged (preferences that exist already)",
        "",
        absent=True,
        options=JudgeConfig,
    ),
    JudgeSpec("meteor", "METEOR with WordNet synonyms", "pgtg.judges.text:meteor"),
    JudgeSpec(
        "meteor_stem",
        "METEOR's exact and stem stages; needs no download",
        "pgtg.judges.text:meteor_stem",
    ),
    JudgeSpec("rouge1", "ROUGE-1 F-measure", "pgtg.judges.text:rouge1"),
    JudgeSpec("rouge2", "ROUGE-2 F-measure", "pgtg.judges.text:rouge2"),
    JudgeSpec("rougeL", "ROUGE-L F-measure", "pgtg.judges.text:rougeL"),
    JudgeSpec("rougeLsum", "ROUGE-Lsum F-measure", "pgtg.judges.text:rougeLsum"),
    JudgeSpec(
        "chrf",
        "chrF2: character n-grams, for any script; needs no download",
        "pgtg.judges.text:chrf",
    ),
    JudgeSpec(
        "reward_model",
        "a reward model: any ...ForSequenceClassification with one logit",
        "pgtg.judges.reward_model:open_reward_model",
        options=RewardModelConfig,
        main=True,
        check="pgtg.judges.reward_model:check",
    ),
    JudgeSpec(
        "llm",
        "a large model over an OpenAI-compatible endpoint: rankings or scores",
        "pgtg.judges.llm:open_llm",
        options=LLMJudgeConfig,
        main=True,
        check="pgtg.judges.llm:check",
    ),
    JudgeSpec(
        "classifier",
        "gap score of a frozen classifier LM (prompt task)",
        "pgtg.judges.classifier:Classifier",
        prompts=True,
        options=ClassifierJudgeConfig,
        check="pgtg.judges.classifier:check",
    ),
)
