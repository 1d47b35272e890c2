"""What other programs take: a run's token rewards, its reward model, its policy.

Nothing in a run folder is changed. What is written is read back by plain Transformers and held
against the run's own before it takes its place.
"""
