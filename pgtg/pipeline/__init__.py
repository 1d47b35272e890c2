"""The alternation of both steps: stages, evaluation, plan, recipes."""
