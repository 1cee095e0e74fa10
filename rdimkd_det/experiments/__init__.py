"""Experiments on digits: what helps and what does not, over seeds, in reproducible tables.

``table`` lists the experiments, ``plan`` turns them into trainings, ``stages`` runs those without a
result, ``results`` stores the results, and ``summary`` and ``plots`` show them. ``variants`` has
losses and projections that only the experiments need.
"""
