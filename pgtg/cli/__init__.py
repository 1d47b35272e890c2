"""The command line: commands, what they call, jobs and completion."""
