"""The metrics, in words; imports nothing heavy."""

from pgtg.config.registry import MetricSpec

METRICS = (
    MetricSpec("rouge", "ROUGE-1, -2, -L and -Lsum", "pgtg.metrics.rouge:make"),
    MetricSpec("meteor", "METEOR with WordNet synonyms", "pgtg.metrics.meteor:make"),
    MetricSpec(
        "meteor_stem",
        "METEOR's exact and stem stages; needs no download",
        "pgtg.metrics.meteor:make_stem",
    ),
    MetricSpec("bertscore", "BERTScore; needs its model", "pgtg.metrics.bertscore:make"),
    MetricSpec(
        "chrf", "chrF2 by sacrebleu: character n-grams, for any script", "pgtg.metrics.chrf:make"
    ),
)
