"""The run folder: files, artifacts, locks, the cache, the log, sweeps."""
