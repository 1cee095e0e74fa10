# A plain two-stage student: Faster R-CNN with a ResNet-18 of half the width, from scratch.
_base_ = ['../_base_/faster_rcnn_r18.py', '../_base_/bccd.py']

model = dict(roi_head=dict(bbox_head=dict(num_classes=3)))
