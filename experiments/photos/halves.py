"""Changes of configs/photos: half of the labels, half of the resolution."""

from __future__ import annotations

import json
from pathlib import Path

from mmdet.registry import DATASETS

from rdimkd_det.datasets import UnlabelledImages

GROUPS = {
    'labels': 'Half of the labels; an epoch sees each labelled image twice',
    'pixels': 'Half of the resolution: the student is trained and tested at 128 pixels',
}
HALF = (128, 128)
TESTED_AT_HALF = {
    'val_dataloader.dataset.pipeline.1.scale': HALF,
    'test_dataloader.dataset.pipeline.1.scale': HALF,
}
TRAINED_AT_HALF = {
    'train_dataloader.dataset.pipeline.2.scale': HALF,
    'train_dataloader.dataset.pipeline.3.crop_size': HALF,
    **TESTED_AT_HALF,
}


def half_of_labels(num_train: int) -> dict:
    """Return the change that keeps every other image, and sees it twice in an epoch."""
    return {'train_dataloader.dataset.indices': sorted([*range(0, num_train, 2)] * 2)}


@DATASETS.register_module()
class OtherHalf(UnlabelledImages):
    """The images that :func:`half_of_labels` leaves out, without their labels.

    Args:
        listed (str): Annotation file below ``data_root``, of which the list of images is read.
        **kwargs: Options of :class:`UnlabelledImages`.
    """

    def __init__(self, listed: str, **kwargs) -> None:
        self.listed = listed
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict]:
        """See :meth:`UnlabelledImages.load_data_list`."""
        images = json.loads(Path(self.data_root, self.listed).read_text())['images']
        names = {image['file_name'] for image in images[1::2]}
        return [sample for sample in super().load_data_list() if sample['img_id'] in names]
