"""Shared by the tools: command lines, checks before a run, and the launch of a run."""
