"""Pickle and YAML files that a config names, such as annotations, read as data only."""

from __future__ import annotations

import pickle
from typing import BinaryIO, TextIO

import yaml
from mmengine.fileio import register_handler
from mmengine.fileio.handlers import PickleHandler, YamlHandler

BUILTINS = ('set', 'frozenset', 'slice', 'bytearray', 'complex')
ALLOWED = {
    *(('builtins', name) for name in BUILTINS),
    *(('__builtin__', name) for name in BUILTINS),  # their module in Python 2's protocols
    ('_codecs', 'encode'),  # for bytes in those protocols
    ('collections', 'OrderedDict'),
    # Of DumpProposals, which Fast R-CNN reads; unpickling sets its attributes alone.
    ('mmengine.structures.instance_data', 'InstanceData'),
    ('numpy', 'ndarray'),
    ('numpy', 'dtype'),
    *((f'numpy.{core}.multiarray', '_reconstruct') for core in ('core', '_core')),
    *((f'numpy.{core}.multiarray', 'scalar') for core in ('core', '_core')),
    *((f'numpy.{core}.numeric', '_frombuffer') for core in ('core', '_core')),
}


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(
                f'a pickle file asks for {module}.{name}, which is not data; it is not loaded, '
                f'since unpickling it could run code'
            )
        return super().find_class(module, name)


class DataPickleHandler(PickleHandler):
    """Reads pickle files of Python's own containers and numpy arrays, and refuses others."""

    def load_from_fileobj(self, file: BinaryIO, **kwargs) -> object:
        """Load a file like mmengine's handler, without running code."""
        return _DataUnpickler(file, **kwargs).load()


class DataYamlHandler(YamlHandler):
    """Reads YAML without Python objects; mmengine's own makes any object that a file asks for."""

    def load_from_fileobj(self, file: TextIO, **kwargs) -> object:
        """Load a file like mmengine's handler, without running code."""
        return yaml.load(file, Loader=yaml.SafeLoader)


def read_data_files_safely() -> None:
    """Make mmengine's ``load`` (0.10.7, OneDL 0.10.12) run no code in this process."""
    register_handler(['pkl', 'pickle'])(DataPickleHandler)
    register_handler(['yaml', 'yml'])(DataYamlHandler)
