"""The digits data set, `python -m experiments.make_digits`, from any directory."""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
runpy.run_module('experiments.make_digits', run_name='__main__')
