"""The evidence: experiments over seeds, the demo, and measurements. Works in the repository only.

``running`` runs trainings as resumable processes. ``plan``, ``stages``, ``results`` and ``summary``
turn a table of experiments on a data set into trainings, results and tables; each data set has a
folder whose ``study`` names all that they need, such as ``digits``. ``demo`` is three experiments
and a report.
"""
