"""A small healthy data set, and what a look at it finds after a change."""

import json
from pathlib import Path

import cv2
import pytest
from mmengine.config import Config
from runs import fcos, run_config, write_data

from rdimkd_det import ConfigError
from rdimkd_det.commands.checks import check_data
from rdimkd_det.data_check import look_at


class Data:
    """A config and the files that it names; train, val and test have files of their own."""

    def __init__(self, folder: Path) -> None:
        self.root = write_data(folder / 'data', num_images=12)
        self.cfg = run_config(self.root, folder / 'work', fcos())
        content = json.loads((self.root / 'annotations.json').read_text())
        for split in ('train', 'val', 'test'):
            if split == 'val':
                self.copy_images(content)
            Path(self.path(split)).write_text(json.dumps(content))
            loader = Config(self.cfg[f'{split}_dataloader'].to_dict())._cfg_dict
            loader.dataset.ann_file = f'{split}.json'
            self.cfg[f'{split}_dataloader'] = loader
            if split != 'train':
                self.cfg[f'{split}_evaluator'] = dict(
                    type='CocoMetric', ann_file=self.path(split), metric='bbox'
                )

    def copy_images(self, content: dict) -> None:
        """Name other images than the training's: copies of these with another first pixel."""
        for entry in content['images']:
            image = cv2.imread(str(self.root / 'images' / entry['file_name']))
            image[0, 0] = 255
            entry['file_name'] = f'unseen_{entry["file_name"]}'
            cv2.imwrite(str(self.root / 'images' / entry['file_name']), image)

    def path(self, split: str) -> str:
        return str(self.root / f'{split}.json')

    def change(self, split: str, change) -> None:
        """Change the content of a split's file by a function."""
        content = json.loads(Path(self.path(split)).read_text())
        change(content)
        Path(self.path(split)).write_text(json.dumps(content))

    def each(self, split: str, change, where=lambda index: True) -> None:
        """Change some of the annotations of a split's file."""
        self.change(
            split,
            lambda content: [
                change(entry) for n, entry in enumerate(content['annotations']) if where(n)
            ],
        )

    def look(self, *splits: str, thorough: bool = True) -> list:
        """Return the warnings and errors."""
        report = look_at(self.cfg, splits or ('train', 'val'), thorough)
        return [finding for finding in report.findings if finding.severity != 'ok']

    def only(self, *splits: str, **options):
        """Return the one warning or error."""
        found = self.look(*splits, **options)
        assert len(found) == 1, found
        return found[0]

    def error(self, *splits: str) -> str:
        """Return the line with which a start refuses the data."""
        with pytest.raises(ConfigError) as refused:
            check_data(self.cfg, splits or ('train', 'val'))
        line = str(refused.value)
        assert '\n' not in line
        return line
