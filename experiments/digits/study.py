"""The experiments on digits, as the parts that every data set has."""

from __future__ import annotations

from ..study import Study
from .images import VERSION, DigitsOptions
from .making import prepare_digits
from .plots import draw
from .table import GROUPS, TABLE

STUDY = Study(
    name='digits',
    table=TABLE,
    groups=GROUPS,
    images=DigitsOptions(),
    few_images=DigitsOptions(num_train=32, num_val=8),
    version=VERSION,
    prepare=prepare_digits,
    paces={'teacher': 0.79, 'plain': 0.27, 'distilled': 0.39},
    draw=draw,
)
