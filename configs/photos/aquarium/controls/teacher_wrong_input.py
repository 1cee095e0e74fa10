# A control, not to be trained: it claims of the teacher that it takes torchvision's RGB input, which
# it does not. A student of it shows what a wrongly normalised teacher costs.
_base_ = ['../yolox_nano_teacher.py']

model = dict(
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    )
)
