"""Handwritten digits: a data set that is made in seconds, and the experiments on it."""
