"""Checks that a config writes files only below its work directory or work_dirs."""

from __future__ import annotations

import os
from collections.abc import Mapping

from mmengine.config import Config

from ..errors import ConfigError
from ..files.configs import leaves

# Options of the hooks, metrics and visualizers of mmengine and mmdet that name an output file or
# folder, relative to the current directory ...
PATHS = {
    'artifact_location', 'collect_dir', 'dir', 'dir_name', 'dump_path', 'dvcyaml',
    'json_trace_path', 'out_dir', 'out_file', 'out_file_path', 'outfile_path', 'outfile_prefix',
    'output_dir', 'proposals_file', 'repo', 'result_path', 'save_dir', 'show_dir', 'tmpdir',
    'tracking_uri', 'work_dirs',
}  # fmt: skip
# ... or relative to a folder in the work directory.
PATHS_BELOW = {
    'config_save_file', 'filename_tmpl', 'img_save_dir', 'scalar_save_file', 'test_out_dir',
}  # fmt: skip
# Where MMDetection keeps all runs, in the current directory. Its own configs name folders there,
# e.g. './work_dirs/cityscapes_metric/instance'.
ALL_RUNS = 'work_dirs'
# For MLflow and Aim: servers that receive reports, not files.
SERVERS = ('http://', 'https://', 'aim://')


def check_outputs(cfg: Config, given: Mapping[str, object]) -> None:
    """Check that a config writes no file outside of its work directory and :data:`ALL_RUNS`.

    ``given`` are the --cfg-options: a path that the user types may be anywhere.
    """
    work_dir, all_runs = os.path.realpath(cfg.work_dir), os.path.realpath(ALL_RUNS)
    for place, path in leaves(cfg._cfg_dict.to_dict()):
        name = place.rsplit('.', 1)[-1]
        if name not in PATHS | PATHS_BELOW or not isinstance(path, str):
            continue
        if '_dataloader.dataset.' in place:  # a data set reads
            continue
        if name in ('tracking_uri', 'repo') and path.startswith(SERVERS):
            continue
        of_work_dir = name in PATHS_BELOW
        target = path.removeprefix('file://').removeprefix('file:')
        if '://' not in target:
            target = os.path.realpath(os.path.join(work_dir if of_work_dir else os.curdir, target))
        allowed = (work_dir,) if of_work_dir else (work_dir, all_runs)
        inside = target == work_dir or target.startswith(tuple(it + os.sep for it in allowed))
        typed = any(f'{place}.'.startswith(f'{option}.') for option in given)
        if not typed and not inside:
            raise ConfigError(
                f'config {cfg.filename}: {place}={path!r} lies outside of the work directory '
                f'{cfg.work_dir} and of ./{ALL_RUNS}, where everything of a run is written; drop '
                f'it, or allow it by typing --cfg-options {place}={path}.'
            )
