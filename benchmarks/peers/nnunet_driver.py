"""Plans, trains and predicts with nnU-Net, inside its own environment.

The module imports only nnunetv2, PyTorch, the clock and the standard library. The training loop is nnU-Net's
(nnUNetTrainer.run_training), except that it asks the clock before every step. The clock runs from the start of the
trainer (network, augmentation workers, first batches) to the last step. Fingerprint, plan and preprocessing are timed
separately and are not part of the budget. The fold is "all", so no case is held back. The last weights are used, with
mirroring at test time, which is nnU-Net's default. `--no-mirroring` turns it off, because with it a volume takes more
than half an hour on two cores.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.peers.clock import Clock


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="holds raw/ and unseen/; predicted/ is written")
    parser.add_argument("out", type=Path, help="folder for report.json")
    parser.add_argument("--budget", type=float, required=True, help="seconds of training")
    parser.add_argument("--configuration", required=True, help="2d or 3d_fullres")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--no-mirroring", action="store_true", help="predict each case once instead of eight times")
    given = parser.parse_args()
    for name, folder in (("raw", "raw"), ("preprocessed", "preprocessed"), ("results", "results")):
        os.environ[f"nnUNet_{name}"] = str(given.folder / folder)

    import torch

    # mypy does not find these packages, because they are only in nnU-Net's own environment.
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api  # type: ignore[import-not-found]
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # type: ignore[import-not-found]
    from nnunetv2.run.run_training import get_trainer_from_args  # type: ignore[import-not-found]

    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    started = time.monotonic()
    api.extract_fingerprints([1], num_processes=given.threads, check_dataset_integrity=True)
    api.plan_experiments([1])
    planned = time.monotonic()
    api.preprocess([1], configurations=[given.configuration], num_processes=[given.threads])
    preprocessed = time.monotonic()

    device = torch.device("cpu")
    trainer = get_trainer_from_args("1", given.configuration, "all", device=device)
    clock = Clock(given.budget)
    train(trainer, clock)

    predicting = time.monotonic()
    predictor = nnUNetPredictor(
        use_mirroring=not given.no_mirroring, perform_everything_on_device=False, device=device, allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, ("all",))
    (given.folder / "predicted").mkdir(exist_ok=True)
    predictor.predict_from_files_sequential(str(given.folder / "unseen"), str(given.folder / "predicted"))
    plan = trainer.configuration_manager
    clock.report(
        given.out,
        unit=f"patches of {' × '.join(map(str, plan.patch_size))}",
        units=clock.steps * plan.batch_size,
        predict_seconds=time.monotonic() - predicting,
        overhead={"plan": planned - started, "preprocess": preprocessed - planned},
        batch_size=plan.batch_size,
    )


def train(trainer: Any, clock: Clock) -> None:
    """Train as nnUNetTrainer.run_training does, until the clock ends it; saves checkpoint_final.pth."""
    trainer.on_train_start()
    while epoch(trainer, clock):
        trainer.on_epoch_end()
    trainer.on_train_end()


def epoch(trainer: Any, clock: Clock) -> bool:
    """Train one epoch and validate. Returns False if the clock ended it."""
    import torch

    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    outputs = []
    for _ in range(trainer.num_iterations_per_epoch):
        if not clock.go_on():
            return False
        outputs.append(trainer.train_step(next(trainer.dataloader_train)))
    trainer.on_train_epoch_end(outputs)
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        steps = range(trainer.num_val_iterations_per_epoch)
        trainer.on_validation_epoch_end([trainer.validation_step(next(trainer.dataloader_val)) for _ in steps])
    return True


if __name__ == "__main__":
    main()
