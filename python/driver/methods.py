"""What is trained: the same network, views and cross-entropy, with or without a loss of the heatmaps."""

from typing import NamedTuple

from cgc_kernels import CGCLoss


class Method(NamedTuple):
    """One column of a comparison."""

    title: str  # in tables and pictures
    summary: str  # in --help
    objective: str | None = None  # of cgc_kernels.cgc_loss; None: cross-entropy alone
    consistent: bool = False  # whether the consistency term is added

    def heatmap_loss(self, settings, group=None) -> CGCLoss | None:
        """The loss of two views' heatmaps, over the ranks of a process group if there is one; None for the baseline."""
        if self.objective is None:
            return None
        return CGCLoss(
            image_size=settings.image_size,
            temperature=settings.temperature,
            weighting=settings.weighting,
            objective=self.objective,
            consistency=settings.consistency if self.consistent else 0.0,
            group=group,
            even=True,
        )

    def weight(self, settings) -> float:
        """What multiplies that loss once it is ramped up; alone, the consistency term weighs what it does elsewhere."""
        if self.objective == "mse":
            return settings.l2_weight
        return settings.cgc_weight * (settings.consistency if self.objective == "consistency" else 1)


METHODS = {
    "baseline": Method("cross-entropy", "cross-entropy of the same views alone"),
    "gradcam_l2": Method("Grad-CAM L2", "with the squared difference of the heatmaps, the paper's ablation", "mse"),
    "cgc": Method("CGC", "with the CGC loss as released", "released"),
    "cgc_consistent": Method("CGC + consistency", "with the CGC loss and its consistency term", "released", True),
    "consistency": Method("consistency", "with the consistency term alone, without negatives", "consistency"),
    "cgc_paper": Method("CGC, equation 3", "with the CGC loss as in the paper's equation", "paper"),
    "cgc_paper_consistent": Method("CGC, eq. 3 + consistency", "that and the consistency term", "paper", True),
}
