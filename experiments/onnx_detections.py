"""Compare an exported detector in onnxruntime with MMDetection on photographs, and time both.

    python -m experiments.onnx_detections CONFIG CHECKPOINT MODEL.onnx IMAGE... [--score-thr 0]

MODEL is from tools/export_student.py --onnx MODEL --end-to-end; --score-thr changes the threshold
of both. A time is that of one image, from its file to the boxes, on one thread.
"""

import rdimkd_det  # noqa: F401  # before mmdet: provides mmcv's operators

# isort: split
import argparse
import json
import statistics
import time

import cv2
import numpy as np
import onnx
import onnxruntime
import torch
from mmdet.apis import inference_detector, init_detector

from examples.detect_with_onnx import prepare
from rdimkd_det.commands import cli
from rdimkd_det.export.end_to_end import agreeing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('model')
    parser.add_argument('images', nargs='+')
    parser.add_argument('--score-thr', type=float)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    config, model = cli.read_config_file(args.config), onnx.load(args.model)
    if args.score_thr is not None:
        (threshold,) = (it for it in model.graph.initializer if it.name == 'score_threshold')
        threshold.CopyFrom(onnx.numpy_helper.from_array(np.float32(args.score_thr), threshold.name))
        config.model.test_cfg.score_thr = args.score_thr
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    recipe = json.loads(session.get_modelmeta().custom_metadata_map['input'])
    detector = init_detector(config, args.checkpoint, device='cpu')

    def in_onnxruntime(path: str) -> list[torch.Tensor]:
        images, factors = prepare(cv2.imread(path), recipe)
        boxes, scores, labels, _ = session.run(None, {'images': images})
        found = boxes / np.tile(factors, 2).astype(np.float32), scores, labels
        return [torch.from_numpy(it) for it in found]

    def in_mmdetection(path: str) -> list[torch.Tensor]:
        found = inference_detector(detector, path).pred_instances
        return [found.bboxes, found.scores, found.labels]

    counts, seconds = np.zeros(4, int), {in_onnxruntime: [], in_mmdetection: []}
    for path in args.images:
        results = []
        for run in seconds:
            start = time.perf_counter()
            results.append(run(path))
            seconds[run].append(time.perf_counter() - start)
        found, expected = results
        counts += [
            len(found[1]),
            len(expected[1]),
            int(agreeing(found, expected).sum()),
            int(agreeing(expected, found).sum()),
        ]
    print(
        f'{len(args.images)} images: onnxruntime {counts[0]} detections, {counts[2]} of them '
        f"MMDetection's; MMDetection {counts[1]}, {counts[3]} of them onnxruntime's"
    )
    for run, values in seconds.items():
        print(f'{run.__name__}: {1000 * statistics.median(values):.0f} ms per image (median)')


if __name__ == '__main__':
    cli.run(main)
