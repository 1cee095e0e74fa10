"""Data sets that come with the package."""

from .digits import DigitsOptions, make_digits

__all__ = ['DigitsOptions', 'make_digits']
