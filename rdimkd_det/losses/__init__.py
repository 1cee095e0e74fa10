"""Losses that compare the tapped feature maps of student and teacher."""

from .rdimkd import RdimKDLoss

__all__ = ['RdimKDLoss']
