"""Losses that compare the tapped feature maps of student and teacher."""

from .feature_loss import FeatureLoss
from .rdimkd import RdimKDLoss

__all__ = ['FeatureLoss', 'RdimKDLoss']
