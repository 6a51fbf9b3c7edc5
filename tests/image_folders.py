"""Small images on a disk, for the tests of what lies there."""

from pathlib import Path

import PIL.Image

COLOURS = {"blue": (20, 20, 220), "green": (20, 220, 20), "red": (220, 20, 20)}


def save(path: Path, colour=(200, 30, 30), size=(12, 10), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, colour).save(path, **options)
    return path


def class_folders(root: Path, classes=("blue", "green", "red"), count=2, suffix=".png") -> Path:
    for name in classes:
        for i in range(count):
            save(root / name / f"{i}{suffix}", COLOURS.get(name, (9, 9, 9)))
    return root
