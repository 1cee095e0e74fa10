"""Images without labels: their data set, and its mixing with a labelled one."""

from .epochs import LabelledEpochs
from .unlabelled import UnlabelledImages

__all__ = ['LabelledEpochs', 'UnlabelledImages']
