# A plain student of another family: GFL with a ResNet-18 of half the width, from scratch.
_base_ = ['../_base_/gfl_r18.py', '../_base_/aquarium.py']

model = dict(bbox_head=dict(num_classes=7))
