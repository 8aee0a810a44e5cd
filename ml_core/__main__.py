"""python -m ml_core train|predict|evaluate"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ml_core.errors import MLError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ml_core", description="Train and use segmentation models.")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="run a training job; events come as JSON lines")
    train.add_argument("--job", type=Path, required=True, help="job file (ml_core.job.TrainingJob as JSON)")
    predict = commands.add_parser("predict", help="segment images with a model package")
    predict.add_argument("--model", type=Path, required=True, help="model.zip")
    predict.add_argument("--out", type=Path, required=True, help="folder for the label maps")
    predict.add_argument("images", type=Path, nargs="+")
    evaluate = commands.add_parser("evaluate", help="score a model package on images with masks")
    evaluate.add_argument("--model", type=Path, required=True, help="model.zip")
    evaluate.add_argument("--images", type=Path, required=True, help="folder of images")
    evaluate.add_argument("--masks", type=Path, required=True, help="folder of masks of the same names")
    return parser


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    if given.command == "train":
        from ml_core.job import main as train

        return train(given.job)
    try:
        if given.command == "predict":
            _predict(given.model, given.images, given.out)
        else:
            _evaluate(given.model, given.images, given.masks)
    except MLError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _predict(model: Path, images: list[Path], out: Path) -> None:
    from ml_core.io import read_image, stem, write_label_map
    from ml_core.predictor import Predictor

    predictor = Predictor.load(model)
    for path in images:
        image = read_image(path)
        found = predictor.predict(image)
        folder = out / stem(path.name)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{path} → {write_label_map(found.values, image, folder)} ({found.seconds:.2f} s)")
        for warning in found.warnings:
            print(f"  {warning}")


def _evaluate(model: Path, images: Path, masks: Path) -> None:
    from ml_core.data import Case
    from ml_core.evaluation import evaluate
    from ml_core.io import stem
    from ml_core.package import to_json
    from ml_core.predictor import Predictor

    by_stem = {stem(path.name): path for path in sorted(masks.iterdir())}
    pairs = [(path, by_stem[stem(path.name)]) for path in sorted(images.iterdir()) if stem(path.name) in by_stem]
    if not pairs:
        raise MLError(
            "no_pairs",
            f"No image in {images} has a mask of the same name in {masks}.",
            "Give both the same names.",
        )
    cases = [Case(index, image.name, image, mask) for index, (image, mask) in enumerate(pairs)]
    print(json.dumps(to_json(evaluate(Predictor.load(model), cases, evaluated_on="given")), indent=1))


if __name__ == "__main__":
    sys.exit(main())
