"""Experiments on photographs: the converters, and the rows that every set of them has."""
