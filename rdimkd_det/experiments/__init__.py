"""Experiments on digits: what helps and what does not, over seeds, in tables that can be remade.

``table`` says what is compared, ``plan`` makes trainings of it, ``stages`` runs those without a
result, ``results`` keeps what they came to, ``summary`` and ``plots`` show it; ``variants`` holds
losses and projections that only experiments need.
"""
