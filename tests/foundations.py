"""Tiny pretrained directories with random weights, as transformers' ``save_pretrained`` writes."""

from __future__ import annotations

import json
from pathlib import Path

import torch

# As the published DINOv2 and DINOv3 have it.
RECORD = dict(
    do_normalize=True,
    do_rescale=True,
    image_mean=[0.485, 0.456, 0.406],
    image_std=[0.229, 0.224, 0.225],
    rescale_factor=1 / 255,
)
BACKBONE = 'transformers.AutoBackbone.from_pretrained'
MODEL = 'transformers.AutoModel.from_pretrained'


def write_directory(folder: Path, kind: str) -> Path:
    """Write a directory: 'dinov2' (patch 14), 'dinov3' (patch 16, registers) or 'convnext'."""
    import transformers as t

    small = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2)
    configs = {
        'dinov2': lambda: t.Dinov2Config(**small, patch_size=14, image_size=70, mlp_ratio=2),
        'dinov3': lambda: t.DINOv3ViTConfig(
            **small, patch_size=16, image_size=64, intermediate_size=48, num_register_tokens=4
        ),
        'convnext': lambda: t.DINOv3ConvNextConfig(
            hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_indices=[2, 3, 4]
        ),
    }
    torch.manual_seed(0)
    t.AutoBackbone.from_config(configs[kind]()).save_pretrained(folder / kind)
    (folder / kind / 'preprocessor_config.json').write_text(json.dumps(RECORD))
    (folder / kind / 'LICENSE.md').write_text(f'licence of {kind}')
    return folder / kind


def pretrained(directory: object, make: str = BACKBONE, **options) -> dict:
    """Return ``model.teacher`` for a directory; ``options`` are those of the teacher."""
    module = dict(type=make, pretrained_model_name_or_path=str(directory))
    return dict(module=module, **options)
