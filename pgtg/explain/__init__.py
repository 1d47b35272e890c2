"""Token credit: which tokens of a text the reward model of a run thanks or blames for its rank.

Nothing in a run folder is changed. The texts are those that the last round sampled, new ones of the
policy, or the user's own; they are shown in the terminal, as one HTML page, or written as a table.
"""
