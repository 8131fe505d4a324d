"""Grad-CAM one can train on: the inputs of the heatmap, attached to the graph, for any classifier.

Grad-CAM (Selvaraju et al., ICCV 2017) weighs the features of a layer by the gradient of a class logit with respect to
them. :class:`GradCAM` runs a model on the views of a batch and hands over features and gradients as a :class:`CAM`.
Unlike pytorch-grad-cam it returns them attached, and leaves the model's mode, its ``.grad`` and its hooks alone; unlike
the released code of CGC (Pillai et al., CVPR 2022) it needs no rewritten model, no replaced head and no double backward
for a pooled linear head, and it runs under DistributedDataParallel and ``torch.compile``.

From the bottom up, every file importing only from those before it: ``capture`` keeps a layer's output,
``forward_reader`` and ``pooled_head`` find a closed form, ``wrapped_model`` joins model, hook and head,
``closed_form_path`` and ``autograd_path`` explain a view, ``families`` choose a layer, ``module`` is the GradCAM.
"""

from .module import GradCAM
from .output import CAM, GradCAMOutput, GradCAMOutputs
from .reshape import tokens_to_map

__all__ = ["CAM", "GradCAM", "GradCAMOutput", "tokens_to_map"]

for _result in (CAM, GradCAMOutput, GradCAMOutputs):
    _result.__module__ = __name__  # files of torch.save name them so, wherever in this package they are defined
