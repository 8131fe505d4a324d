"""Grad-CAM one can train on: the inputs of the heatmap, attached to the graph, for any classifier."""

from .module import CAM, GradCAM, GradCAMOutput, GradCAMOutputs, tokens_to_map

__all__ = ["CAM", "GradCAM", "GradCAMOutput", "tokens_to_map"]

for _result in (CAM, GradCAMOutput, GradCAMOutputs):
    _result.__module__ = __name__  # files of torch.save name them so, wherever in this package they are defined
