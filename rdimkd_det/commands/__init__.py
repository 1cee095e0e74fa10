"""What the tools share: command lines, checks before a run, and its launch."""
