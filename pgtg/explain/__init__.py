"""Token credit: which tokens raise or lower a text in the ranking of a run's reward model.

Nothing in a run folder is changed. The texts are those that the last round sampled, new ones of the
policy, or the user's own; they are shown in the terminal, as one HTML page, or written as a table.
"""
