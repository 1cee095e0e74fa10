# A control, not to be trained: it claims of the teacher that it takes caffe's BGR input, which it
# does not. A student of it shows what a wrongly normalised teacher costs.
_base_ = ['../fcos_r50_teacher.py']

model = dict(
    data_preprocessor=dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False)
)
