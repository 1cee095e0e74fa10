"""The experiments, `python -m experiments.run_experiments`, from any directory."""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
runpy.run_module('experiments.run_experiments', run_name='__main__')
