"""``DetectorSource``: a teacher that is an MMDetection detector, a config and a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from torch import Tensor, nn

from ..errors import ConfigError
from ..files.configs import as_json, config_name, read_detector_config
from ..files.strict_loading import load_strictly
from ..options import SCOPE, type_name
from .source import Source, checkpoint_facts

PARTS = ('backbone', 'neck')
# Options of networks that only a training uses, and mmengine's note of a scope.
OF_TRAINING = ('init_cfg', 'pretrained', 'frozen_stages', 'norm_eval', 'with_cp', SCOPE)


class FeatureExtractor(nn.Module):
    """Backbone and neck of a detector, the part that its ``extract_feat`` runs."""

    display_name = 'the teacher'  # name in error messages

    def __init__(self, model: ConfigDict, with_neck: bool) -> None:
        super().__init__()
        self.backbone = MODELS.build(model['backbone'])
        if with_neck and model.get('neck') is not None:
            self.neck = MODELS.build(model['neck'])

    def forward(self, images: Tensor) -> object:
        feats = self.backbone(images)
        return self.neck(feats) if hasattr(self, 'neck') else feats


class DetectorSource(Source):
    """Backbone and neck of a trained detector.

    ``config`` is a path, ``'mmdet::...'``, or a config with a ``model``.
    """

    whole_taps = PARTS
    built_on_meta = True
    input_scale = 1.0

    def __init__(self, config: str | dict | None = None, checkpoint: str | None = None) -> None:
        if not isinstance(checkpoint, (str, Path)):
            raise ConfigError(
                f"teacher: needs a checkpoint, the path or URL of the teacher's weights; got "
                f'{checkpoint!r}.'
            )
        self.model = read_detector_config(config)
        self.config = config
        self.name = config_name(config)
        self.checkpoint = str(checkpoint)

    def build(self, taps: Sequence[str]) -> FeatureExtractor:
        """Build backbone and, if it is tapped, neck."""
        with_neck = any(tap.split('.')[0] != 'backbone' for tap in taps)
        # Initialisation draws random numbers, and must not change those that the student draws.
        with torch.random.fork_rng(devices=[]):
            return FeatureExtractor(self.model, with_neck)

    def load(self, weights: Mapping[str, Tensor], taps: Sequence[str]) -> FeatureExtractor:
        network = self.build(taps)
        load_strictly(network, weights, self.checkpoint, self.name, who='teacher', assign=True)
        return network.requires_grad_(False).eval()

    def build_preprocessor(self) -> nn.Module:
        # Like a detector, fall back to mmengine's base class if the config or its type is missing.
        options = self.model.get('data_preprocessor') or {}
        return MODELS.build({'type': 'BaseDataPreprocessor', **options})

    def facts(self) -> dict:
        """Return the parts of the config that determine the maps, and the checkpoint."""
        return self.given_facts({'model': self.model}, self.checkpoint)

    @classmethod
    def given_facts(cls, config: str | dict | None = None, checkpoint: str | None = None) -> dict:
        """Return the facts that an entry of a config tells, which may lack either of the two."""
        model = {} if config is None else read_detector_config(config)
        facts = {
            f"{part} of the teacher's config": as_json(_of_maps(model.get(part)))
            for part in ((*PARTS, 'data_preprocessor') if model else ())
        }
        return facts if checkpoint is None else {**facts, **checkpoint_facts(checkpoint, PARTS)}


def _of_maps(entry: object) -> object:
    """Drop what does not change the maps of a frozen network, and the scopes of names."""
    if not isinstance(entry, Mapping):
        return entry
    kept = {key: _of_maps(value) for key, value in entry.items() if key not in OF_TRAINING}
    return {**kept, 'type': type_name(entry)} if 'type' in entry else kept
