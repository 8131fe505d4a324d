"""Explainers by name: our Grad-CAM, and all of pytorch-grad-cam's that take a model and a layer.

An explainer is called with views and labels and returns the first view's logits and a coarse heatmap of every view, as
evaluation.Explainer says. Heatmaps are >= 0, neither scaled nor resized, whichever library they come from.
"""

import numpy as np
import torch
from torch import Tensor

from . import models
from .models import Classifier

OURS = "ours"
OTHERWISE_BUILT = ("BaseCAM", "FullGrad", "RefineCAM", "SegEigenCAM", "SESS", "ShapleyCAM")  # need more than that


def names() -> list[str]:
    """All explainers, ours first; pytorch-grad-cam's under their class names, where it is installed."""
    return [OURS, *sorted(_theirs())]


def build(name: str, classifier: Classifier):
    """The explainer of that name for a classifier; raises ValueError naming --explainer."""
    if name == OURS:
        return models.grad_cam(classifier)
    known = _theirs()
    if name not in known:
        raise ValueError(f"--explainer must be one of {', '.join(names())}, got {name!r}")
    return PytorchGradCAM(known[name], classifier)


class PytorchGradCAM:
    """An explainer of pytorch-grad-cam, its raw map taken before it is scaled and resized; the model goes to eval mode.

    Attributes:
        model: the classifier.
    """

    def __init__(self, kind: type, classifier: Classifier):
        self.model = classifier.model.eval()
        layer = self.model.get_submodule(classifier.target_layer)
        self.cam = kind(model=self.model, target_layers=[layer], reshape_transform=classifier.reshape)
        self.layer = layer

    def __call__(self, views, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits of the first view [B, K], heatmaps [B, H, W] of every view for the labels."""
        logits, heatmaps = [], []
        with torch.enable_grad():
            for view in views:
                own, heat = self._explain(view, labels)
                logits.append(own)
                heatmaps.append(heat)
        return logits[0], heatmaps

    def _explain(self, view: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        cam, targets = self.cam, [ClassifierOutputTarget(label) for label in labels.tolist()]
        # A view that requires grad reaches the layer's hooks even where all parameters are frozen.
        output = cam.activations_and_grads(view.clone().requires_grad_())
        cam.outputs = output
        gradients = None
        if cam.uses_gradients:
            self.model.zero_grad()
            sum(target(own) for target, own in zip(targets, output, strict=True)).backward()
            gradients = cam.activations_and_grads.gradients[0].numpy()
        activations = cam.activations_and_grads.activations[0].numpy()
        logits = output.detach()
        heat = cam.get_cam_image(view, self.layer, targets, activations, gradients, False)
        self.model.zero_grad()
        cam.activations_and_grads.gradients, cam.activations_and_grads.activations = [], []
        return logits, torch.from_numpy(np.maximum(np.asarray(heat, dtype=np.float32), 0)).to(view.device)


def _theirs() -> dict[str, type]:
    try:
        import pytorch_grad_cam
        from pytorch_grad_cam.base_cam import BaseCAM
    except ImportError:
        return {}
    kinds = [kind for kind in vars(pytorch_grad_cam).values() if isinstance(kind, type) and issubclass(kind, BaseCAM)]
    return {kind.__name__: kind for kind in kinds if kind.__name__ not in OTHERWISE_BUILT}
