"""Shared by the tools: command lines, checks before a run, and its launch."""
