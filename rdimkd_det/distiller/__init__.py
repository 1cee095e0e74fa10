"""The student that learns from a teacher."""

from .distiller import RdimKDDistiller, distilled_student

__all__ = ['RdimKDDistiller', 'distilled_student']
