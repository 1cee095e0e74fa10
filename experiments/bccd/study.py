"""The experiments on BCCD, as the parts that every data set has."""

from __future__ import annotations

from ..photos.images import BCCD
from ..photos.table import photos_study

STUDY = photos_study(BCCD)
