"""Where does a classifier look in these pictures? Writes the heatmap over each image, as PNG.

    python python/explain.py photo.jpg --checkpoint runs/a-run
    python python/explain.py photos/*.jpg --checkpoint resnet50 --pretrained --class "tabby" --output overlays
    python python/explain.py bird.jpg --checkpoint runs/cub --explainer LayerCAM

The image is shown as the model sees it: its shorter side resized, its middle cut out. The class explained is the
predicted one unless --class names another.
"""

import argparse
import sys
from itertools import chain, count
from pathlib import Path

import torch
from driver import explainers, loading, models
from driver.data import CorruptImage
from driver.data.images import read_image
from driver.evaluation import as_explainer
from driver.evaluation_views import as_tensor
from driver.flags import documented_parser, integer, run_script
from driver.loading import Loaded
from driver.views import original_view
from evaluate import add_model_flags, chosen_device
from PIL import Image

from cgc_kernels import overlay
from cgc_kernels.metrics import upsample


def main(arguments: list[str] | None = None) -> int:
    """Explain every image; returns the exit status, 1 if one could not be explained."""
    parser = make_parser()
    flags = parser.parse_args(arguments)
    try:
        return explain(flags)
    except (ValueError, OSError) as error:
        parser.error(str(error))


def explain(flags) -> int:
    """Write an overlay for every image; returns 1 where that failed for one. Raises ValueError naming what is wrong."""
    device = chosen_device(flags.device)
    loaded = loading.load(flags.checkpoint, flags)
    for note in loaded.classifier.notes:
        print(note, file=sys.stderr)
    classifier = loaded.classifier._replace(model=loaded.classifier.model.to(device))
    explainer = as_explainer(explainers.build(flags.explainer, classifier))
    wanted = class_number(flags.class_, loaded)
    folder = Path(flags.output)
    folder.mkdir(parents=True, exist_ok=True)
    failed, taken = 0, {_place(path) for path in flags.images}
    for path in flags.images:
        try:
            print(explain_image(path, loaded, explainer, wanted, folder, taken, flags.size, device))
        except (CorruptImage, NoAnswer) as error:
            failed = 1
            print(error, file=sys.stderr)
    return failed


class NoAnswer(ArithmeticError):
    """The model's logits for an image are not finite."""


@torch.no_grad()
def explain_image(
    path: str, loaded: Loaded, explainer, wanted: int | None, folder: Path, taken: set, size: int, device
) -> str:
    """Write one overlay beside those that are ``taken``; returns a line about it."""
    settings = loaded.settings
    image = read_image(path)
    view = as_tensor(original_view(image, settings.image_size))
    mean, std = (
        torch.tensor(values)[:, None, None] for values in models.normalisation(settings.model, settings.pretrained)
    )
    batch = ((view - mean) / std)[None].to(device)
    probabilities = loaded.classifier.model(batch).softmax(1)[0].cpu()
    if not probabilities.isfinite().all():
        raise NoAnswer(f"{path}: the logits of {loaded.title} are not finite")
    predicted = int(probabilities.argmax())
    shown = predicted if wanted is None else wanted
    _, (heat,), *_ = explainer((batch,), torch.tensor([shown], device=device))
    fine = upsample(heat.float().cpu(), size)[0]
    large = as_tensor(original_view(image, size))  # the same part of the image, in all its detail
    pixels = (overlay(large, fine) * 255).round().byte().permute(1, 2, 0).numpy()
    target = free_name(folder, f"{Path(path).stem}-{file_name(class_name(shown, loaded))}", taken)
    Image.fromarray(pixels).save(target)
    dead = "" if fine.any() else "; the heatmap is dead, nothing speaks for this class"
    return (
        f"{path}: predicted {class_name(predicted, loaded)} ({100 * probabilities[predicted]:.1f} %), "
        f"explained {class_name(shown, loaded)} ({100 * probabilities[shown]:.1f} %){dead}: {target}"
    )


def class_number(text: str, loaded: Loaded) -> int | None:
    """The class that --class names, by name or number; None where it was not given."""
    if not text:
        return None
    if text in loaded.classes:
        return loaded.classes.index(text)
    if text.isdecimal() and int(text) < loaded.outputs:
        return int(text)
    near = [name for name in loaded.classes if text.lower() in name.lower()][:5]
    more = f"; near it: {', '.join(near)}" if near else ""
    raise ValueError(f"--class must be a class's name or its number below {loaded.outputs}, got {text!r}{more}")


def class_name(number: int, loaded: Loaded) -> str:
    """Its name, or its number where the names are not known."""
    return loaded.classes[number] if loaded.classes else f"class {number}"


def free_name(folder: Path, stem: str, taken: set[str]) -> Path:
    """The PNG file of that stem, numbered where this call has written one or was asked about one; taken from now on."""
    names = chain([stem], (f"{stem}-{number}" for number in count(2)))
    target = next(path for name in names if _place(path := folder / f"{name}.png") not in taken)
    taken.add(_place(target))
    return target


def _place(path: str | Path) -> str:
    """One text for all ways to write a path, on file systems that do not tell cases apart as well."""
    return str(Path(path).resolve()).casefold()


def file_name(text: str) -> str:
    """The text with what is awkward in a file's name replaced."""
    return "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in text)


def make_parser() -> argparse.ArgumentParser:
    """Every flag, with its documentation."""
    parser = documented_parser("explain.py", "IMAGE [IMAGE ...] --checkpoint MODEL [flags]", __doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    group = parser.add_argument_group("model")
    group.add_argument(
        "--checkpoint",
        required=True,
        metavar="MODEL",
        help="a run folder (its last.pt), a checkpoint, or a name of torchvision or timm (timm/NAME)",
    )
    add_model_flags(group)
    group.add_argument("--pretrained", action="store_true", help="for a name: with the library's weights (downloaded)")
    group = parser.add_argument_group("explanation")
    group.add_argument("--class", dest="class_", metavar="NAME", default="", help="class to explain, name or number")
    names = ", ".join(explainers.names())
    group.add_argument("--explainer", metavar="NAME", default=explainers.OURS, help=f"{names} (default: ours)")
    group = parser.add_argument_group("output")
    group.add_argument("--output", metavar="FOLDER", default=".", help="where the PNG files go (default: here)")
    group.add_argument("--size", type=integer(16), metavar="N", default=448, help="their side (default: 448)")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes CUDA if present")
    return parser


if __name__ == "__main__":
    run_script(main)
