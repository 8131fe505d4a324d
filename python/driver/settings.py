"""The settings of a training: every flag, its default, its check and its help, in one table.

Where a value comes from, the later the stronger: default, --preset, --config FILE, flag; with --resume, the run folder.
"""

from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

import yaml

from . import rules, sources
from .data import DATASETS
from .flags import integer, integers, number, one_of, option, word
from .methods import METHODS
from .presets import PRESETS, implied
from .storage import check_new, replacing

CONFIG = "config.yaml"
# Flags that leave the results as they are.
FREE_ON_RESUME = {"output", "resume", "check", "device", "progress", "workers", "features", "checkpoint_every"}

WHAT = "what to train"
REPETITION = "repetition"
DATA = "data"
MODEL = "model"
LOSS = "loss: CE of the views + weight * ramp * (CGC + consistency * (1 - cosine))"
OPTIMISATION = "optimisation"
SPEED = "speed"
SCALE = "scale: start with torchrun --nproc-per-node N python/train.py ..."
EVALUATION = "evaluation"
RUN = "run"


def default_output(name: str) -> str:
    """Where what is made goes if --output does not say."""
    return f"runs/{datetime.now():%Y%m%d-%H%M%S}-{name}"


@dataclass(frozen=True)
class Settings:
    """All that decides a training. The demo's weights of the heatmap loss were chosen on validation images, seed 10."""

    method: str = option("cgc_consistent", one_of(*METHODS), WHAT, "what is trained")
    compare: bool = option(False, bool, WHAT, "train baseline, cgc and cgc_consistent, and compare them")

    seed: int = option(0, integer(0), REPETITION, "first seed: data, initial weights, order, crops")
    seeds: int = option(1, integer(1), REPETITION, "how many seeds, counting up from --seed")

    data: str = option(
        "demo",
        one_of(*DATASETS),
        DATA,
        "data set; demo is made on the spot, folder is any train/<class>/*, val/<class>/*, cutouts pastes any "
        "<class>/* with transparency on --photographs",
    )
    data_root: str = option("", word("DIR"), DATA, "folder of the data set, as its makers lay it out")
    boxes: str = option("", word("FILE"), DATA, "object boxes as CSV, for --data folder or imagenet")
    photographs: str = option("", word("DIR"), DATA, "cutouts: folder of pictures that objects are pasted on")
    image_size: int = option(64, integer(1), DATA, "side of the square views in pixels; the demo's is 64")
    crop_scale: float = option(
        0.4, number(0, 1, strict=True), DATA, "least area of a random crop as a share of the image"
    )
    flip: float = option(0.0, number(0, 1), DATA, "probability of a mirrored view; a mirrored digit is another sign")
    views: int = option(
        0, integer(0), DATA, "pairs of random views of an image, drawn once and met in turn; 0: others in every pass"
    )
    fraction: float = option(
        1.0, number(0, 1, strict=True), DATA, "share of the training images to use, drawn per class by the seed"
    )
    unlabeled: str = option(
        "",
        word("DIR|rest"),
        DATA,
        "images without labels for the heatmap loss, which then is of these alone, while the cross-entropy is of the "
        "labelled ones; rest: what --fraction leaves out. An epoch is one over the labelled images",
    )
    strict: bool = option(False, bool, DATA, "an unreadable image is fatal; otherwise the next takes its place")
    train_images: int = option(2000, integer(2), DATA, "demo, cutouts: images to train on")
    val_images: int = option(500, integer(10), DATA, "the same: images for the curves and the best checkpoint")
    test_images: int = option(3000, integer(10), DATA, "the same: images for the final table, looked at once")
    distractors: int = option(
        0, integer(0), DATA, "the same: other digits' fragments, other objects, beside the object"
    )
    backgrounds: str = option(
        "any", one_of("any", "class"), DATA, "the same: class ties photographs to classes, in training only"
    )
    train_objects: int = option(0, integer(0), DATA, "cutouts: objects a class to train on, drawn by the seed; 0: all")

    model: str = option(
        "small_resnet",
        word("NAME"),
        MODEL,
        "small_resnet, efficientnet_lite0, any classifier of torchvision, or timm/NAME",
    )
    pretrained: bool = option(False, bool, MODEL, "start from the library's weights (downloaded), or a package's")
    init: str = option("", word("FILE"), MODEL, "start from a checkpoint, ours or another's; what misfits is listed")
    freeze_until: str = option(
        "",
        word("LAYER"),
        MODEL,
        "the model stays as it is up to this layer; with --views, what the layer gives is made once and kept",
    )
    target_layer: str = option("", word("LAYER"), MODEL, "layer that Grad-CAM explains; the family's last by default")

    cgc_weight: float = option(0.5, number(0), LOSS, "weight of the heatmap loss, lambda in the paper")
    l2_weight: float = option(
        1000.0, number(0), LOSS, "the same for gradcam_l2, whose loss is of order 1 / image_size ** 2"
    )
    consistency: float = option(
        10.0, number(0), LOSS, "weight of 1 - cosine inside the heatmap loss, for the methods that have it"
    )
    temperature: float = option(0.5, number(0, strict=True), LOSS, "temperature of the contrast, tau in the paper")
    ramp: float = option(
        0.5, number(0, 1), LOSS, "share of the training over which the heatmap loss rises linearly to its weight"
    )
    weighting: str = option(
        "gradcam",
        one_of("gradcam", "elementwise"),
        LOSS,
        "gradcam as published, elementwise as in the released code; the same for pooled linear heads",
    )
    target: str = option(
        "prediction", one_of("prediction", "label"), LOSS, "class explained: predicted on the original view, or true"
    )
    ce_views: int = option(
        3, integer(1), LOSS, "views in the cross-entropy: 3, or 1, the random crop that has no heatmap"
    )
    teacher: bool = option(
        False, bool, LOSS, "the original view's heatmap, without gradient, from the averaged weights of --ema"
    )

    epochs: int = option(18, integer(1), OPTIMISATION, "passes over the labelled training images")
    batch_size: int = option(
        32, integer(2), OPTIMISATION, "images per step, over all processes; the loss contrasts the images of a batch"
    )
    accumulate: int = option(
        1, integer(1), OPTIMISATION, "parts of a batch, one after the other; each is contrasted within itself"
    )
    optimizer: str = option("adamw", one_of("adamw", "sgd"), OPTIMISATION, "AdamW, or SGD with --momentum")
    lr: float = option(2e-3, number(0, strict=True), OPTIMISATION, "highest learning rate")
    head_lr: float = option(0.0, number(0), OPTIMISATION, "the same for the last linear layer; 0: as --lr")
    momentum: float = option(0.9, number(0, 1), OPTIMISATION, "momentum of SGD")
    weight_decay: float = option(0.05, number(0), OPTIMISATION, "weight decay, decoupled in AdamW")
    schedule: str = option(
        "cosine", one_of("cosine", "step"), OPTIMISATION, "cosine to 0, or times --decay-factor at --decay-epochs"
    )
    warmup: int = option(2, integer(0), OPTIMISATION, "epochs of linear warm-up, at most half of all")
    decay_epochs: tuple[int, ...] = option((), integers, OPTIMISATION, "finished epochs after which the rate decays")
    decay_factor: float = option(0.1, number(0, 1), OPTIMISATION, "what multiplies the rate then")
    clip: float = option(0.0, number(0), OPTIMISATION, "largest norm of the gradient; 0: any")
    ema: float = option(
        0.0, number(0, 1), OPTIMISATION, "decay of averaged weights, which are then what is evaluated; 0: none"
    )
    freeze_batchnorm: bool = option(False, bool, OPTIMISATION, "BatchNorm keeps the statistics it starts with")

    amp: str = option(
        "off",
        one_of("off", "bf16", "fp16"),
        SPEED,
        "mixed precision; fp16 scales the loss, which reads the GPU each step",
    )
    channels_last: bool = option(True, bool, SPEED, "channels_last memory format")
    compile: bool = option(False, bool, SPEED, "torch.compile the model and its Grad-CAM")
    batched_views: bool = option(
        False, bool, SPEED, "one forward for all views: faster on a GPU, but BatchNorm's statistics then mix the views"
    )
    features: str = option(
        "",
        word("DIR"),
        SPEED,
        "where that is kept, for all trainings that differ in their loss alone; memory by default",
    )
    workers: int = option(0, integer(0), SPEED, "processes per rank that load images; the results do not depend on it")

    sync_batchnorm: bool = option(False, bool, SCALE, "BatchNorm's statistics over all processes; CUDA only")
    global_negatives: bool = option(True, bool, SCALE, "contrast the images of all processes, not of each")
    checkpoint_every: int = option(
        0, integer(0), SCALE, "steps between checkpoints inside an epoch; 0: only after each epoch"
    )

    faithfulness: int = option(
        0, integer(0), EVALUATION, "test images that get insertion and deletion curves, 58 forwards each"
    )

    output: str = option("", word("FOLDER"), RUN, "run folder; runs/<date>-<time>-<method or compare> by default")
    resume: bool = option(
        False,
        bool,
        RUN,
        "continue the training in --output after its last checkpoint, with its settings; what is finished is not "
        "trained again; a comparison may be given more --seeds",
    )
    check: bool = option(
        False,
        bool,
        RUN,
        "train nothing: read every image and box once, print what is wrong, the classes, the layer, a step's cost",
    )
    device: str = option("auto", one_of("auto", "cpu", "cuda"), RUN, "auto takes CUDA if present")
    progress: bool = option(True, bool, RUN, "progress bar")

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods to train: those of the table in a comparison."""
        return ("baseline", "cgc", "cgc_consistent") if self.compare else (self.method,)

    @property
    def all_seeds(self) -> range:
        """The seeds to train with."""
        return range(self.seed, self.seed + self.seeds)


FIELDS = {field.name: field for field in fields(Settings)}


def parse(arguments: list[str] | None = None) -> Settings:
    """Read the command line; exits with a message that names the flag if something is wrong.

    Example:
        >>> parse(["--epochs", "3"]).epochs
        3
    """
    parser = sources.parser(FIELDS)
    given = vars(parser.parse_args(arguments))
    try:
        return _resumed(given) if given.get("resume") else _fresh(given)
    except ValueError as error:
        parser.error(str(error))


def save(settings: Settings) -> None:
    """Write config.yaml into the run folder; --config reads it back."""
    with replacing(Path(settings.output, CONFIG)) as path:
        path.write_text(yaml.safe_dump(kept(settings), sort_keys=False))


def load(folder: str | Path) -> Settings:
    """The settings of a run folder. Raises ValueError if there are none, or another version's."""
    config = Path(folder, CONFIG)
    if not config.is_file():
        raise ValueError(f"{folder} must be a run folder, got one without a {CONFIG}")
    saved = sources.read(config, FIELDS)
    expected = kept(Settings()).keys()
    if saved.keys() != expected:
        raise ValueError(f"{config} must hold the settings {', '.join(expected)}; was it written by another version?")
    return Settings(**saved, output=str(folder))


def kept(settings: Settings) -> dict:
    """What decides the results, as YAML and checkpoints hold it."""
    values = {name: value for name, value in asdict(settings).items() if name not in FREE_ON_RESUME}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _fresh(given: dict) -> Settings:
    preset, config = given.pop("preset", None), given.pop("config", None)
    own = {**(sources.read(Path(config), FIELDS) if config else {}), **given}
    preset = preset or implied(own.get("data", Settings.data))
    settings = Settings(**{**PRESETS[preset], **own})
    rules.check(settings)
    if settings.output:
        check_new(Path(settings.output), "; add --resume to continue that training")
    return settings


def _resumed(given: dict) -> Settings:
    for name in ("preset", "config"):
        if given.pop(name, None):
            raise ValueError(f"--{name} must not come with --resume, which takes the settings of the run folder")
    if "output" not in given:
        raise ValueError("--resume must come with --output FOLDER, the run folder to continue")
    if not Path(given["output"], CONFIG).is_file():
        raise ValueError(f"--output must be a run folder to --resume, got {given['output']} without a {CONFIG}")
    saved = load(given["output"])
    free = FREE_ON_RESUME | ({"seeds"} if saved.compare else set())
    for name in given.keys() - free:
        if given[name] != getattr(saved, name):
            where = Path(saved.output, CONFIG)
            raise ValueError(
                f"{sources.flag(name)} must be {getattr(saved, name)} as in {where} to --resume, got {given[name]}"
            )
    settings = Settings(**{**asdict(saved), **given})
    if settings.seeds < saved.seeds:
        where = Path(saved.output, CONFIG)
        raise ValueError(f"--seeds must be at least {saved.seeds} as in {where} to --resume, got {settings.seeds}")
    rules.check(settings)
    return settings
