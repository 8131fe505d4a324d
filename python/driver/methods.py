"""What is trained: the same network, views and cross-entropy, with or without the heatmap loss and its two terms."""

from typing import NamedTuple

from cgc_kernels import CGCLoss

from .data.demo import IMAGE_SIZE


class Method(NamedTuple):
    """One column of the comparison."""

    title: str  # in tables and pictures
    summary: str  # in --help
    contrast: bool  # whether the CGC loss is added
    consistency: bool  # whether it has the consistency term

    def heatmap_loss(self, temperature: float, consistency: float) -> CGCLoss | None:
        """The loss of two views' heatmaps, None for the baseline."""
        if not self.contrast:
            return None
        weight = consistency if self.consistency else 0.0
        return CGCLoss(image_size=IMAGE_SIZE, temperature=temperature, consistency=weight)


METHODS = {
    "baseline": Method("cross-entropy", "cross-entropy of the same three views alone", False, False),
    "cgc": Method("CGC", "with the CGC loss as released", True, False),
    "cgc_consistent": Method("CGC + consistency", "with the CGC loss and its consistency term", True, True),
}
