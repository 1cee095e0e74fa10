"""Write a set of photographs in COCO format from a clone of its public repository."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

import cv2

from rdimkd_det.commands import cli
from rdimkd_det.errors import ConfigError

from .images import AQUARIUM, BCCD, Photos

# An object: its class and its corners x1, y1, x2, y2 in pixels.
Box = tuple[str, float, float, float, float]
SIDES = ('xmin', 'ymin', 'xmax', 'ymax')
CLASSES = {
    'bccd': ('RBC', 'WBC', 'Platelets'),
    'aquarium': ('fish', 'jellyfish', 'penguin', 'puffin', 'shark', 'starfish', 'stingray'),
}


def read_bccd(repository: Path) -> Iterator[tuple[str, Path, list[Box]]]:
    """Yield split, image file and boxes of BCCD: VOC XML; train is trainval.txt, val test.txt."""
    root = repository / 'BCCD'
    for split, listed in (('train', 'trainval'), ('val', 'test')):
        for name in (root / 'ImageSets' / 'Main' / f'{listed}.txt').read_text().split():
            objects = ElementTree.parse(root / 'Annotations' / f'{name}.xml').iter('object')
            boxes = [
                (it.findtext('name'), *(float(it.findtext(f'bndbox/{side}')) for side in SIDES))
                for it in objects
            ]
            yield split, root / 'JPEGImages' / f'{name}.jpg', boxes


def read_aquarium(repository: Path) -> Iterator[tuple[str, Path, list[Box]]]:
    """Yield split, image file and boxes of the aquarium set: YOLO text, shares of the image."""
    root = repository / 'dataset' / 'aquarium_pretrain'
    for split, folder in (('train', 'train'), ('val', 'valid'), ('test', 'test')):
        for image in sorted((root / folder / 'images').iterdir()):
            label = root / folder / 'labels' / f'{image.stem}.txt'
            width, height = size_of(image)
            boxes = []
            for line in label.read_text().splitlines():
                number, x, y, w, h = line.split()
                x, w, y, h = (
                    float(x) * width,
                    float(w) * width,
                    float(y) * height,
                    float(h) * height,
                )
                corners = x - w / 2, y - h / 2, x + w / 2, y + h / 2
                boxes.append((CLASSES['aquarium'][int(number)], *corners))
            yield split, image, boxes


SETS: Mapping[str, tuple[Photos, Callable]] = {
    'bccd': (BCCD, read_bccd),
    'aquarium': (AQUARIUM, read_aquarium),
}


def size_of(image: Path) -> tuple[int, int]:
    """Return width and height of an image in pixels, as the trainings read it."""
    pixels = cv2.imread(str(image))
    if pixels is None:
        raise ConfigError(f'{image} is no image.')
    return pixels.shape[1], pixels.shape[0]


def convert(name: str, repository: Path, out_dir: Path) -> dict[str, int]:
    """Write ``images/`` and ``annotations/<split>.json``, whole or not at all.

    Args:
        name (str): 'bccd' or 'aquarium'.
        repository (Path): Clone of the set's repository.
        out_dir (Path): Directory of the set; must not exist.

    Returns:
        dict[str, int]: Number of images of each split.

    Raises:
        ConfigError: ``out_dir`` exists, or the repository has another layout.
    """
    photos, read = SETS[name]
    if out_dir.exists():
        raise ConfigError(f'{out_dir} exists; give another place, or remove it.')
    work = out_dir.with_name(f'.{out_dir.name}.making')
    shutil.rmtree(work, ignore_errors=True)
    (work / 'images').mkdir(parents=True)
    (work / 'annotations').mkdir()
    try:
        splits: dict[str, dict] = {}
        for split, image, boxes in read(repository):
            coco = splits.setdefault(split, _empty_coco(name, photos))
            _add_image(coco, image, boxes)
            shutil.copyfile(image, work / 'images' / image.name)
        for split, coco in splits.items():
            (work / 'annotations' / f'{split}.json').write_text(json.dumps(coco))
        os.replace(work, out_dir)
    except (OSError, ValueError, LookupError, TypeError, ElementTree.ParseError) as error:
        raise ConfigError(
            f'{repository} has not the layout of github.com/{photos.source} at commit '
            f'{photos.commit[:7]}: {error}'
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return {split: len(coco['images']) for split, coco in splits.items()}


def _empty_coco(name: str, photos: Photos) -> dict:
    categories = [{'id': index, 'name': each} for index, each in enumerate(CLASSES[name], 1)]
    source = f'github.com/{photos.source}, commit {photos.commit}, {photos.licence}'
    info = {'description': name, 'source': source}
    return {'info': info, 'images': [], 'annotations': [], 'categories': categories}


def _add_image(coco: dict, image: Path, boxes: list[Box]) -> None:
    ids = {it['name']: it['id'] for it in coco['categories']}
    width, height = size_of(image)
    image_id = len(coco['images']) + 1
    coco['images'].append(
        {'id': image_id, 'file_name': image.name, 'width': width, 'height': height}
    )
    for label, x1, y1, x2, y2 in boxes:
        x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)
        w, h = round(x2 - x1, 2), round(y2 - y1, 2)
        if min(w, h) < 1:  # two boxes of each set
            continue
        annotation = {'id': len(coco['annotations']) + 1, 'image_id': image_id, 'iscrowd': 0}
        box = [round(x1, 2), round(y1, 2), w, h]
        coco['annotations'].append(
            {**annotation, 'category_id': ids[label], 'bbox': box, 'area': round(w * h, 2)}
        )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('name', choices=sorted(SETS))
    parser.add_argument('repository', type=Path, help='clone of its GitHub repository')
    parser.add_argument('out_dir', type=Path, help='directory to make, e.g. data/bccd')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    counts = convert(args.name, args.repository, args.out_dir)
    listed = ', '.join(f'{count} images for {split}' for split, count in counts.items())
    print(f'wrote {args.out_dir}: {listed}')


if __name__ == '__main__':
    cli.run(main)
