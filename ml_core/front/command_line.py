"""The command line: python -m ml_core train|predict|evaluate|export-nnunet."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from ml_core.errors import MLError
from ml_core.memory import restart_tuned

# A time budget counts from here, so that it includes the import of torch.
BEGUN = time.monotonic()
# The exit code that shells give a command stopped by Ctrl-C.
STOPPED = 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ml_core", description="Train and use segmentation models.")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_train(commands.add_parser("train", help="train a model from folders of images and masks"))
    predict = commands.add_parser("predict", help="segment images with a model")
    predict.add_argument("--model", type=Path, required=True, help="model.zip")
    predict.add_argument("--out", type=Path, required=True, help="folder for the label maps")
    predict.add_argument("images", nargs="+", help="files, folders of files, folders of DICOM slices")
    evaluate = commands.add_parser("evaluate", help="score a model on images with masks")
    evaluate.add_argument("--model", type=Path, required=True, help="model.zip")
    _add_pair(evaluate, required=True)
    evaluate.add_argument("--out", type=Path, help="folder for metrics.json and a picture per case")
    evaluate.add_argument("--json", action="store_true", help="print all metrics as JSON")
    export = commands.add_parser("export-nnunet", help="write images and masks as a raw dataset of nnU-Net")
    _add_pair(export, required=True)
    export.add_argument("--out", type=Path, required=True, help="nnUNet_raw/DatasetNNN_Name")
    return parser


def _add_pair(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument("--images", type=Path, required=required, help="folder of images")
    parser.add_argument("--masks", type=Path, required=required, help="folder of masks of the same names")


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--job", type=Path, help="job file (ml_core.training.job.TrainingJob as JSON); events come as JSON lines"
    )
    _add_pair(parser, required=False)
    parser.add_argument("--nnunet-raw", type=Path, help="nnUNet_raw/DatasetNNN_Name instead of images and masks")
    parser.add_argument("--channel", type=int, help="number of the channel to use, if the cases have several")
    parser.add_argument("--out", type=Path, help="folder for model.zip, metrics.json, curve.csv, plan.json, …")
    parser.add_argument(
        "--splits", type=Path, help="splits_final.json: which cases are trained on and which are held out"
    )
    parser.add_argument("--fold", type=int, default=0, help="number of the fold in it (default: 0)")
    parser.add_argument("--test-images", type=Path, help="folder of images for the final evaluation")
    parser.add_argument("--test-masks", type=Path, help="folder of their masks")
    parser.add_argument("--keep-store", action="store_true", help="keep the decoded images, for another training")
    _add_hyperparameters(parser)


def _add_hyperparameters(parser: argparse.ArgumentParser) -> None:
    from ml_core.planning.hyperparameters import groups

    for heading, specs in groups().items():
        group = parser.add_argument_group(
            f"hyperparameters: {heading}", "Those that you leave out are planned from the data."
        )
        for name, spec in specs.items():
            unit = f" [{spec.unit}]" if spec.unit else ""
            group.add_argument(
                f"--{name.replace('_', '-')}",
                type=spec.type,
                choices=spec.choices,
                metavar=None if spec.choices and len(spec.choices) < 8 else spec.type.__name__.upper(),
                help=f"{spec.help}{unit}".replace("%", "%%"),
            )


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 2 for an error, 130 for a training that was stopped.

    arguments: those of the command line; None for the ones that the process was started with.
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.command == "train" and arguments is None:
        restart_tuned()
    if given.command == "train" and given.job:
        from ml_core.training.process import main as run_job

        return run_job(given.job, BEGUN)
    if given.command == "train" and not given.out:
        parser.error("train needs --out, and --images with --masks or --nnunet-raw")
    try:
        return COMMANDS[given.command](given)
    except MLError as error:
        print(f"{error.file}: {error}" if error.file else error, file=sys.stderr)
        return STOPPED if error.code == "stopped" else 2


def _train(given: argparse.Namespace) -> int:
    from ml_core.front.api import metrics_table, train
    from ml_core.planning.hyperparameters import specs

    hyperparameters = {name: value for name in specs() if (value := getattr(given, name)) is not None}
    model = train(
        given.images,
        given.masks,
        out=given.out,
        nnunet_raw=given.nnunet_raw,
        channel=given.channel,
        splits=given.splits,
        fold=given.fold,
        test_images=given.test_images,
        test_masks=given.test_masks,
        keep_store=given.keep_store,
        begun=BEGUN,
        **hyperparameters,
    )
    if not model.metrics:
        return STOPPED
    print(metrics_table(model.metrics))
    print(model.path)
    return 0


def _predict(given: argparse.Namespace) -> int:
    from ml_core.front.api import predict

    for path in predict(given.model, given.images, given.out):
        print(path)
    return 0


def _evaluate(given: argparse.Namespace) -> int:
    from ml_core.front.api import evaluate, metrics_table

    metrics = evaluate(given.model, given.images, given.masks, out=given.out)
    print(json.dumps(metrics.to_json(), indent=1) if given.json else metrics_table(metrics))
    return 0


def _export(given: argparse.Namespace) -> int:
    from ml_core.front.api import export_nnunet

    print(export_nnunet(given.images, given.masks, given.out))
    return 0


COMMANDS = {"train": _train, "predict": _predict, "evaluate": _evaluate, "export-nnunet": _export}
