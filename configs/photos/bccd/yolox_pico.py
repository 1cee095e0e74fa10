# The plain student: YOLOX-nano of half the width, from scratch.
_base_ = ['../_base_/yolox_pico.py', '../_base_/bccd.py']

model = dict(bbox_head=dict(num_classes=3))
