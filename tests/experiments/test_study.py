"""A data set of one's own in the experiments: a study, and nothing else."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console
from runs import fcos, run_config, write_data

from experiments.plan import Plan
from experiments.stages import run_experiments
from experiments.study import Experiment, Study, list_studies, load_study
from experiments.summary import collect, markdown_report


@dataclass(frozen=True)
class Rectangles:
    """Options of the toy data set."""

    num_train: int = 8


def prepare(directory: Path, options: Rectangles, console: Console) -> None:
    if not directory.exists():
        write_data(directory, options.num_train)
        (directory / 'annotations').mkdir()
        content = (directory / 'annotations.json').read_bytes()
        (directory / 'annotations' / 'val.json').write_bytes(content)


def test_studies__are_found_by_their_folder():
    assert 'digits' in list_studies()
    assert load_study('digits').data == Path('data/digits')


@pytest.mark.slow
def test_study__of_a_data_set_of_ones_own(tmp_path):
    run_config(tmp_path / 'elsewhere', tmp_path, fcos(), 1).dump(tmp_path / 'plain.py')
    plain = Experiment('plain', 'plain student', ('main',), str(tmp_path / 'plain.py'))
    study = Study(
        name='rectangles',
        table={'plain': plain},
        groups={'main': 'All'},
        images=Rectangles(),
        few_images=Rectangles(),
        version='1',
        prepare=prepare,
        paces={'plain': 0.1},
    )
    folders = (tmp_path / name for name in ('work', 'data', 'results'))
    plan = Plan(study, *folders, study.images, epochs=1)
    run_experiments(plan, [plain], [3], 1, Console(quiet=True))
    result = plan.result(plan.run(plain, 3))
    assert 0 <= result['ap'] <= 1 and result['images'] == {'num_train': 8}
    outcomes = collect(plan, [3])
    assert outcomes['plain'].scores() == {3: result['ap']}
    assert f'| plain student (`plain`) | {result["ap"]:.3f} |' in markdown_report(
        study, outcomes, [3]
    )
