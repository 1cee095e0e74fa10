"""Lines and files of scalars as mmengine logs them."""

import json


def train_line(step, loss=1.0, epoch_length=10):
    epoch = (step - 1) // epoch_length + 1
    return {
        'loss': loss,
        'loss_rdimkd_neck_s8': loss / 2,
        'loss_rdimkd_neck_s16': loss / 4,
        'time': 0.5,
        'iter': step,
        'epoch': epoch,
        'step': step,
    }


def val_line(epoch, ap):
    scores = {'coco/bbox_mAP': ap, 'coco/bbox_mAP_50': ap + 0.1, 'coco/bbox_mAP_75': ap + 0.05}
    return {**scores, 'time': 9.0, 'step': epoch}


def write_part(work_dir, name, lines, cut_off=''):
    scalars = work_dir / name / 'vis_data' / 'scalars.json'
    scalars.parent.mkdir(parents=True)
    scalars.write_text('\n'.join(map(json.dumps, lines)) + '\n' + cut_off)
