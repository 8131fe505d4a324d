"""The rules between settings: what no single flag's check can know."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .settings import Settings


def check(settings: "Settings") -> None:
    """Raise ValueError for the first rule that is broken."""
    for broken, message in (*_of_data(settings), *_of_training(settings)):
        if broken:
            raise ValueError(message)


def _of_data(settings: "Settings") -> list[tuple[bool, str]]:
    demo, cutouts = settings.data == "demo", settings.data == "cutouts"
    return [
        (
            (demo or cutouts) and settings.batch_size > settings.train_images,
            f"--batch-size must be at most --train-images {settings.train_images}, got {settings.batch_size}",
        ),
        (
            settings.device == "cuda" and not torch.cuda.is_available(),
            "--device must be cpu or auto where PyTorch finds no CUDA device, got cuda",
        ),
        (settings.data == "unrel", "--data must not be unrel to train: it has test images only; see evaluate.py"),
        (
            not demo and not settings.data_root,
            f"--data {settings.data} must come with --data-root DIR, the folder that holds it",
        ),
        (
            cutouts and not settings.photographs,
            "--data cutouts must come with --photographs DIR, what its objects are pasted on",
        ),
        (
            bool(settings.photographs) and not cutouts,
            f"--photographs goes with --data cutouts, got it with {settings.data}",
        ),
        (demo and settings.image_size != 64, f"--image-size must be 64 for the demo, got {settings.image_size}"),
    ]


def _of_training(settings: "Settings") -> list[tuple[bool, str]]:
    return [
        (
            bool(settings.features) and not (settings.views and settings.freeze_until),
            "--features DIR must come with --freeze-until LAYER and --views N, whose features it keeps",
        ),
        (settings.ce_views not in (1, 3), f"--ce-views must be 1 or 3, got {settings.ce_views}"),
        (settings.teacher and not settings.ema, "--teacher must come with --ema DECAY, whose weights it uses"),
        (settings.ema == 1, "--ema must be below 1, got 1"),
        (
            bool(settings.unlabeled) and settings.target == "label",
            "--target must be prediction with --unlabeled, whose images have no label, got label",
        ),
        (
            settings.unlabeled == "rest" and settings.fraction == 1,
            "--unlabeled rest must come with a --fraction below 1",
        ),
        (
            settings.batch_size % settings.accumulate != 0,
            f"--accumulate must divide --batch-size {settings.batch_size}, got {settings.accumulate}",
        ),
        (
            settings.sync_batchnorm and settings.freeze_batchnorm,
            "--sync-batchnorm must not come with --freeze-batchnorm",
        ),
    ]
