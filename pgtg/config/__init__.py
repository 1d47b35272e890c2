"""The config: its schema, and how the command line's texts reach it."""

from pgtg.config.schema import *  # noqa: F403
