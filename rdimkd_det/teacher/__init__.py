"""The teacher: where its network comes from, and how it runs frozen."""

from .detector_source import DetectorSource, FeatureExtractor
from .module_source import ModuleSource
from .source import Source
from .teacher import Teacher

__all__ = ['DetectorSource', 'FeatureExtractor', 'ModuleSource', 'Source', 'Teacher']
