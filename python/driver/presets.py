"""Recipes: what a preset changes in the defaults, which are the demo's.

Published are the commands of the released code for ImageNet and for 1 % of its labels. For the fine-grained data sets
the paper gives results and no recipe: those here are ours, usual ones for a pretrained ResNet-50.
"""

_PHOTOGRAPHS = {
    "method": "cgc",
    "model": "resnet50",
    "image_size": 224,
    "crop_scale": 0.08,
    "flip": 0.5,
    "optimizer": "sgd",
    "weight_decay": 1e-4,
    "warmup": 0,
    "ramp": 0.0,
    "workers": 8,
}

# README of the released code: batch 256, lr 0.1, a tenth of it every 30 epochs (from its script), lambda and tau 0.5.
_IMAGENET = {
    **_PHOTOGRAPHS,
    "data": "imagenet",
    "weighting": "elementwise",
    "epochs": 90,
    "batch_size": 256,
    "lr": 0.1,
    "schedule": "step",
    "decay_epochs": (30, 60),
    "decay_factor": 0.1,
}

# README of the released code: SwAV's recipe from SwAV's weights, the cross-entropy of one view of the labelled images.
_IMAGENET_1PC = {
    **_IMAGENET,
    "fraction": 0.01,
    "unlabeled": "rest",
    "ce_views": 1,
    "epochs": 50,
    "batch_size": 128,
    "lr": 0.02,
    "head_lr": 5.0,
    "weight_decay": 0.0,
    "decay_epochs": (12, 16),
    "decay_factor": 0.2,
    "cgc_weight": 0.25,
}

_FINE_GRAINED = {
    **_PHOTOGRAPHS,
    "pretrained": True,
    "epochs": 60,
    "batch_size": 64,
    "lr": 0.01,
    "head_lr": 0.1,
    "warmup": 2,
}

# What the photographs of docs/photographs.md are trained by: the last stage and the head, on views made once.
_CUTOUTS = {
    "data": "cutouts",
    "method": "cgc_consistent",
    "model": "efficientnet_lite0",
    "pretrained": True,
    "freeze_until": "blocks.5",
    "freeze_batchnorm": True,
    "views": 3,
    "image_size": 224,
    "flip": 0.5,
    "train_images": 640,
    "val_images": 320,
    "test_images": 560,
    "epochs": 5,
    "warmup": 1,
    "lr": 3e-4,
    "head_lr": 3e-3,
}

PRESETS = {
    "demo": {},
    "imagenet": _IMAGENET,
    "imagenet-1pc": _IMAGENET_1PC,
    "cutouts": _CUTOUTS,
    **{name: {**_FINE_GRAINED, "data": name} for name in ("cub", "aircraft", "cars", "flowers")},
}

SUMMARIES = {
    "demo": "the defaults below",
    "imagenet": "ResNet-50 from scratch, the released recipe",
    "imagenet-1pc": "1 %% of the labels, the rest unlabeled, the released recipe; give SwAV's weights with --init",
    "cutouts": "the head of a pretrained EfficientNet-Lite0, our recipe",
    "cub, aircraft, cars, flowers": "pretrained ResNet-50, our recipe: the paper's is not published",
}

# What --data chooses where no --preset is given.
IMPLIED = {"imagenet": "imagenet", "unrel": "imagenet", "folder": "imagenet"}


def implied(data: str) -> str:
    """The preset that goes with a data set."""
    return IMPLIED.get(data, data)
