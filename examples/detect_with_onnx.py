"""Detect in images with a student exported by tools/export_student.py --onnx F --end-to-end.

    python examples/detect_with_onnx.py student.onnx photo.jpg...

It needs numpy, onnxruntime and opencv-python; neither PyTorch nor MMDetection.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import onnxruntime


def prepare(image: np.ndarray, recipe: dict) -> tuple[np.ndarray, np.ndarray]:
    """Resize and pad as in training; return the model's input, and the factors of width, height."""
    size = resized = np.array(image.shape[1::-1])  # width, height
    if (to := recipe['resize']) is not None:
        if 'long_side' in to:
            scale = min(to['long_side'] / size.max(), to['short_side'] / size.min())
            resized = (size * scale + 0.5).astype(int)
        else:
            resized = np.array([to['width'], to['height']])
        image = cv2.resize(image, resized.tolist())
    if (to := recipe['pad']) is not None:
        if 'width' in to:
            padded = np.array([to['width'], to['height']])
        else:
            sides = np.full(2, resized.max()) if to['square'] else resized
            padded = -(-sides // to['divisor']) * to['divisor']
        right, below = padded - resized
        image = cv2.copyMakeBorder(image, 0, below, 0, right, 0, value=to['value'])
    return image.transpose(2, 0, 1)[None], resized / size


def main() -> None:
    parser = argparse.ArgumentParser(description='Detect in images with an ONNX model.')
    parser.add_argument('model', metavar='MODEL.onnx')
    parser.add_argument('images', nargs='+', metavar='IMAGE')
    parser.add_argument('--score-thr', type=float, default=0.3, help='least score. Default: 0.3')
    args = parser.parse_args()
    if not Path(args.model).is_file():
        parser.error(f'{args.model} is missing; tools/export_student.py writes it')
    session = onnxruntime.InferenceSession(args.model, providers=['CPUExecutionProvider'])
    about = session.get_modelmeta().custom_metadata_map
    if 'input' not in about:
        parser.error(f'{args.model} does not detect; export it with --onnx F.onnx --end-to-end')
    recipe, classes = json.loads(about['input']), json.loads(about['classes'])
    for path in args.images:
        image = cv2.imread(path)  # BGR, as the model expects
        if image is None:
            parser.error(f'{path} is missing, or no image that OpenCV reads')
        images, factors = prepare(image, recipe)
        boxes, scores, labels, _ = session.run(None, {'images': images})
        for box, score, label in zip(boxes / np.tile(factors, 2), scores, labels):
            if score >= args.score_thr:
                print(path, classes[label] if classes else label, f'{score:.2f}', *box.round(1))


if __name__ == '__main__':
    main()
