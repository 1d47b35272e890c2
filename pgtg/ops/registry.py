"""The aggregators, in words; imports nothing heavy."""

from pgtg.config.registry import AggregatorSpec

AGGREGATORS = (
    AggregatorSpec(
        "avg", "C x mean of the token rewards (the paper's choice)", "pgtg.ops.aggregate:avg"
    ),
    AggregatorSpec(
        "sum",
        "sum of the token rewards (the classical choice)",
        "pgtg.ops.aggregate:total",
        scaled=False,
    ),
    AggregatorSpec("min", "C x soft minimum of the token rewards", "pgtg.ops.aggregate:soft_min"),
    AggregatorSpec("max", "C x soft maximum of the token rewards", "pgtg.ops.aggregate:soft_max"),
)
