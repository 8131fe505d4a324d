"""The terms, each of which is added to the cross-entropy of all three views, and the arms made of them."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cgc_kernels import CropFlip, heatmap_loss, metrics

from . import sizes
from .maps import cosine, explained, of_class, seen_through, to_unit_range, unit


class Step:
    """What a term sees of B images: the original, a crop of it, and one more.

    Attributes:
        maps: three of [B, K, H, W], each class's Grad-CAM before the ReLU. crops: of the original, of the latter two.
        logits: [B, K], of the original. labels: [B]. top, second: [B], classes by the original's logits.
        frozen, net: what the original's maps were made of, and by.
    """

    def __init__(self, maps: Sequence[Tensor], logits: Tensor, crops: Sequence[CropFlip], labels: Tensor, frozen, net):
        self.maps, self.logits, self.crops, self.labels = maps, logits, crops, labels
        self.frozen, self.net = frozen, net
        self.top, self.second = logits.topk(2).indices.T

    def pair(self, make: "Make | None" = None) -> tuple[Tensor, Tensor]:
        """Heatmaps [B, H, W] of the original and of its crop, the top class's or what ``make`` makes of the maps."""
        return tuple((make or of_top)(self, maps) for maps in self.maps[:2])

    def fine_pair(self) -> tuple[Tensor, Tensor]:
        """The original's heatmap as the crop sees it, and the crop's, [B, S, S]."""
        own, twin = (metrics.upsample(heatmaps, sizes.SIZE) for heatmaps in self.pair())
        return self.crops[0].apply(own[:, None])[:, 0], twin


Term = Callable[[Step], Tensor]
Make = Callable[[Step, Tensor], Tensor]  # of class maps [B, K, H, W] heatmaps [B, H, W]


def of_top(step: Step, maps: Tensor) -> Tensor:
    """The top class's heatmaps."""
    return of_class(maps, step.top)


def of_second(step: Step, maps: Tensor) -> Tensor:
    """The second class's."""
    return of_class(maps, step.second)


def over_second(step: Step, maps: Tensor) -> Tensor:
    """The top class's map less the second's."""
    rows = torch.arange(len(maps))
    return F.relu(maps[rows, step.top] - maps[rows, step.second])


def over_places(step: Step, maps: Tensor) -> Tensor:
    """The top class's map less, at every place, the largest of the others'."""
    top = F.one_hot(step.top, maps.shape[1]).bool()[:, :, None, None]
    return F.relu(maps[torch.arange(len(maps)), step.top] - maps.masked_fill(top, -math.inf).amax(1))


def tempered(temperature: float) -> Make:
    """The map of T log softmax(logits / T) of the top class, by the original's probabilities."""
    return lambda step, maps: of_class(explained(maps, step.logits, temperature), step.top)


def cgc(weight: float, make: Make = of_top) -> Term:
    """The released loss, and so many times the consistency term."""
    return lambda step: heatmap_loss(*step.pair(make), step.crops[0], image_size=sizes.SIZE, consistency=weight)


def consistency(own: Tensor, twin: Tensor, crops: CropFlip) -> Tensor:
    """Mean of 1 - cosine of a heatmap, seen through its crop, and the crop's."""
    return heatmap_loss(own, twin, crops, image_size=sizes.SIZE, objective="consistency")


def together(*terms: Term) -> Term:
    """The sum of terms."""
    return lambda step: sum(term(step) for term in terms)


def several_crops(make: Make) -> Term:
    """CGC, and consistency with both crops."""

    def term(step: Step) -> Tensor:
        own, *twins = (make(step, maps) for maps in step.maps)
        pairs = sum(consistency(own, twin, crops) for twin, crops in zip(twins, step.crops, strict=True))
        return cgc(0, make)(step) + 10 * pairs

    return term


def certain_images(step: Step) -> Tensor:
    """CGC, and a consistency term of the images that are classified right alone."""
    right = (step.top == step.labels).float()
    return cgc(0)(step) + 10 * (right * (1 - cosine(*step.fine_pair()))).sum() / right.sum().clamp(min=1)


def certain_places(step: Step) -> Tensor:
    """CGC, and a consistency term in which places count by the top class's share in the softmax of all maps there."""
    cells = step.maps[0][0, 0].numel()
    shares = (step.maps[0].detach() * cells).softmax(1)[torch.arange(len(step.top)), step.top]
    weights = step.crops[0].apply(metrics.upsample(shares, sizes.SIZE)[:, None])[:, 0].sqrt()
    return cgc(0)(step) + 10 * (1 - cosine(*(weights * heatmaps for heatmaps in step.fine_pair()))).mean()


def rival_as_negative(count: int) -> Term:
    """CGC + consistency, where the crop's heatmap of the second class counts as so many further negatives."""

    def term(step: Step) -> Tensor:
        seen, twin = map(unit, step.fine_pair())
        rival = (twin * unit(metrics.upsample(of_second(step, step.maps[1]), sizes.SIZE))).sum(1, keepdim=True)
        positive = (seen * twin).sum(1, keepdim=True)
        itself = torch.eye(len(twin), dtype=torch.bool)
        others = (twin @ twin.T).masked_fill(itself, -math.inf)
        logits = torch.cat([positive, others, rival + 0.5 * math.log(count)], 1) / 0.5
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long)) + 10 * (1 - positive.mean())

    return term


def rivals_apart(weight: float, moved: str = "both") -> Term:
    """Mean cosine of the top and the second class's heatmaps; moved: whether "both", or the "second" one's alone."""

    def term(step: Step) -> Tensor:
        pairs = list(zip(step.pair(), step.pair(of_second), strict=True))
        likenesses = [cosine(own if moved == "both" else own.detach(), rival).mean() for own, rival in pairs]
        return weight * sum(likenesses) / 2

    return term


def all_apart(weight: float) -> Term:
    """Mean cosine of the top class's heatmap with that of every other class."""

    def likenesses(maps: Tensor, top: Tensor) -> Tensor:
        rows = F.normalize(F.relu(maps).flatten(2), dim=2, eps=1e-6)
        with_top = (rows * rows[torch.arange(len(rows)), top][:, None]).sum(2)
        return (with_top.sum(1) - with_top.gather(1, top[:, None])[:, 0]).mean() / (maps.shape[1] - 1)

    return lambda step: weight * sum(likenesses(maps, step.top) for maps in step.maps[:2]) / 2


def rival_consistency(step: Step) -> Tensor:
    """The consistency term of the second class's heatmaps."""
    return 10 * consistency(*step.pair(of_second), step.crops[0])


def next_image_apart(weight: float) -> Term:
    """Consistency, and the cosine of each image's heatmap with the next one's: ICEL's O(n), as we read it."""

    def term(step: Step) -> Tensor:
        own, twin = step.pair()
        fine = metrics.upsample(twin, sizes.SIZE)
        return 10 * consistency(own, twin, step.crops[0]) + weight * cosine(fine, fine.roll(1, 0)).mean()

    return term


def seam(weight: float) -> Term:
    """SEAM's equivariance loss: mean absolute difference of the label's CAMs in 0..1, over all classes and places."""

    def term(step: Step) -> Tensor:
        own, twin = (to_unit_range(F.relu(maps)) for maps in step.maps[:2])
        of_labels = F.one_hot(step.labels, own.shape[1])[:, :, None, None]
        return weight * ((seen_through(own, step.crops[0]) - twin).abs() * of_labels).mean()

    return term


def attention(weight: float) -> Term:
    """Attention consistency: mean squared difference of all classes' CAMs, signed and unscaled."""

    def term(step: Step) -> Tensor:
        own, twin = (maps * maps[0, 0].numel() for maps in step.maps[:2])  # a CAM is Grad-CAM times its cells
        return weight * F.mse_loss(seen_through(own, step.crops[0]), twin)

    return term


def batch_cam(weight: float) -> Term:
    """Batch-CAM's loss, as we read it: squared distance to the mean heatmap of the label's class in the batch."""

    def term(step: Step) -> Tensor:
        heatmaps = to_unit_range(of_class(step.maps[0], step.labels))
        alike = (step.labels[:, None] == step.labels).float()
        means = (alike / alike.sum(1, keepdim=True)) @ heatmaps.detach().flatten(1)
        return weight * F.mse_loss(heatmaps.flatten(1), means)

    return term


def prototypes(weight: float) -> Term:
    """Batch-CAM's prototype loss, as we read it: squared distance to the class's mean heatmap of the run so far."""
    sums: dict[int, Tensor] = {}
    counts: dict[int, int] = {}

    def term(step: Step) -> Tensor:
        heatmaps = to_unit_range(of_class(step.maps[0], step.labels))
        for label, heatmap in zip(step.labels.tolist(), heatmaps.detach(), strict=True):
            sums[label], counts[label] = sums.get(label, 0) + heatmap, counts.get(label, 0) + 1
        means = torch.stack([sums[label] / counts[label] for label in step.labels.tolist()])
        return weight * F.mse_loss(heatmaps, means)

    return term


def collage(weight: float) -> Term:
    """Of the left of an image's frozen features and the right of the next's, each class's heatmap keeps to its own."""

    def term(step: Step) -> Tensor:
        left = (torch.arange(step.frozen.shape[-1]) < step.frozen.shape[-1] / 2).float()
        beside, own = step.top.roll(1, 0), of_top(step, step.maps[0])
        _, maps, _ = step.net(step.frozen * left + step.frozen.roll(1, 0) * (1 - left))
        alike = cosine(of_class(maps, step.top), own * left)
        alike = alike + cosine(of_class(maps, beside), own.roll(1, 0) * (1 - left))
        differ = (beside != step.top).float()
        return weight * (differ * (1 - alike / 2)).sum() / differ.sum().clamp(min=1)

    return term


CONSISTENT = cgc(10)
ARMS: dict[str, Callable[[], Term | None]] = {  # made anew for each run, since one remembers
    "ce": lambda: None,
    "cgc-c10": lambda: CONSISTENT,
    "several-crops": lambda: several_crops(of_top),
    "certain-right": lambda: certain_images,
    "certain-places": lambda: certain_places,
    "rival-negative-31": lambda: rival_as_negative(31),
    "rivals-apart-3": lambda: together(CONSISTENT, rivals_apart(3)),
    "second-apart-1": lambda: together(CONSISTENT, rivals_apart(1, moved="second")),
    "second-apart-3": lambda: together(CONSISTENT, rivals_apart(3, moved="second")),
    "all-apart-10": lambda: together(CONSISTENT, all_apart(10)),
    "rival-consistent": lambda: together(CONSISTENT, rival_consistency),
    "rival-consistent-apart-3": lambda: together(CONSISTENT, rival_consistency, rivals_apart(3)),
    "over-second": lambda: cgc(10, over_second),
    "over-places": lambda: cgc(10, over_places),
    "several-over-places": lambda: several_crops(over_places),
    "tempered-1": lambda: cgc(10, tempered(1)),
    "tempered-3": lambda: cgc(10, tempered(3)),
    "tempered-5": lambda: cgc(10, tempered(5)),
    "collage-3": lambda: together(CONSISTENT, collage(3)),
    "icel-positive": lambda: lambda step: 10 * consistency(*step.pair(), step.crops[0]),
    "icel-classes": lambda: rivals_apart(3),
    "icel-next-3": lambda: next_image_apart(3),
    "seam-30": lambda: seam(30),
    "attention-.3": lambda: attention(0.3),
    "attention": lambda: attention(1),
    "attention-cgc": lambda: together(attention(1), cgc(0)),
    "batch-cam-10": lambda: batch_cam(10),
    "prototypes-10": lambda: prototypes(10),
}
