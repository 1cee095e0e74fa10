"""The experiments on the aquarium set, as the parts that every data set has."""

from __future__ import annotations

from ..photos.images import AQUARIUM
from ..photos.table import photos_study

STUDY = photos_study(AQUARIUM)
