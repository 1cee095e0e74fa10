"""Experiments on digits: what helps and what does not, over seeds, in tables that can be remade.

``table`` says what is compared, ``runs`` turns it into trainings and their results, ``summary`` and
``plots`` show these; ``variants`` holds losses and projections that only experiments need.
"""
