"""What else could be asked of heatmaps: many terms beside the cross-entropy, on photographs, by the same measures.

    python python/search.py --data-root OBJECTS --photographs PHOTOGRAPHS --arms all --seeds 10 --steps 60
    python python/search.py --data-root OBJECTS --photographs PHOTOGRAPHS --arms ce cgc-c10 attention --test
    python python/search.py --table                    the tables of what is finished, nothing is trained

The folders are those of --data cutouts; docs/search.md says what came of it. The last stage and the head of
EfficientNet-Lite0 are trained on what its frozen stages make of the views, which is made once and kept in --output. All
arms see the same views in the same order, and start from the same weights. A run is a line of runs.jsonl there; what is
finished is not trained again. Settings are chosen on validation images: --test looks at the test images as well.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from driver import models
from driver.data import cutouts
from driver.metrics import consistencies, label_ranks
from torch import Tensor, nn

from cgc_kernels import CropFlip, RandomCropFlip, heatmap_loss, metrics

SIZE, FINE, CROPS, BATCH = 224, 56, 2, 32  # of views, of measured heatmaps; crops kept an image; images a step
IMAGES = {"train": 640, "val": 320, "test": 560}
TEMPERATURES = (3.0, 4.0, 5.0, math.inf)  # of the explained log-probability, see explained()
BLURS = (0.5, 0.7, 1.0)  # cells of the coarse map, of which the best for each measure is the control


# ---- Maps.


def explained(maps: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Class maps [N, K, H, W] of T log softmax(logits / T), from those of the logits.

    At T = 1 the map of the log-probability, at infinity of the logit less the mean logit.
    """
    others = (logits.detach() / temperature).softmax(1)
    return maps - (others[:, :, None, None] * maps).sum(1, keepdim=True)


def of_class(maps: Tensor, classes: Tensor) -> Tensor:
    """The heatmaps [N, H, W] of one class an image."""
    return F.relu(maps[torch.arange(len(maps)), classes])


def seen_through(maps: Tensor, crops: CropFlip) -> Tensor:
    """Coarse maps [N, K, H, W] of whole views, signed, as the crops see them, on the same H x W grid."""
    grid = (torch.arange(maps.shape[-1]) + 0.5) / maps.shape[-1]
    across = torch.where(crops.flip[:, None], grid.flip(0), grid) * crops.width[:, None] + crops.left[:, None]
    down = grid * crops.height[:, None] + crops.top[:, None]
    places = torch.stack(torch.broadcast_tensors(across[:, None, :], down[:, :, None]), -1) / SIZE * 2 - 1
    return F.grid_sample(maps, places, padding_mode="border", align_corners=False)


def unit(maps: Tensor) -> Tensor:
    """Maps [N, ...] as unit vectors; zero stays zero."""
    return F.normalize(maps.flatten(1), dim=1, eps=1e-6)


def cosine(maps: Tensor, others: Tensor) -> Tensor:
    """Of each map with its other, [N]."""
    return (unit(maps) * unit(others)).sum(1)


def to_unit_range(maps: Tensor) -> Tensor:
    """Non-negative maps [..., H, W] between 0 and 1, each by its own least and largest value."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).clamp(min=1e-9)


# ---- The terms. Each is what is added to the cross-entropy of all three views.


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
        own, twin = (metrics.upsample(heatmaps, SIZE) for heatmaps in self.pair())
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
    return lambda step: heatmap_loss(*step.pair(make), step.crops[0], image_size=SIZE, consistency=weight)


def consistency(own: Tensor, twin: Tensor, crops: CropFlip) -> Tensor:
    """Mean of 1 - cosine of a heatmap, seen through its crop, and the crop's."""
    return heatmap_loss(own, twin, crops, image_size=SIZE, objective="consistency")


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
    weights = step.crops[0].apply(metrics.upsample(shares, SIZE)[:, None])[:, 0].sqrt()
    return cgc(0)(step) + 10 * (1 - cosine(*(weights * heatmaps for heatmaps in step.fine_pair()))).mean()


def rival_as_negative(count: int) -> Term:
    """CGC + consistency, where the crop's heatmap of the second class counts as so many further negatives."""

    def term(step: Step) -> Tensor:
        seen, twin = map(unit, step.fine_pair())
        rival = (twin * unit(metrics.upsample(of_second(step, step.maps[1]), SIZE))).sum(1, keepdim=True)
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
        fine = metrics.upsample(twin, SIZE)
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


# ---- Views, and what the frozen stages make of them.


class Views(NamedTuple):
    """Images of one split, of one seed.

    Attributes:
        frozen: [N, 1 + V, C, H, W], of the original and its V crops. crops: int64 [N, V, 5].
        labels, others: int64 [N], the object's class and the distractor's, -1 where there is none.
        masks, other_masks: bool [N, FINE, FINE]. boxes: float [N, 4], in pixels of the view. objects: N files.
    """

    frozen: Tensor
    crops: Tensor
    labels: Tensor
    others: Tensor
    masks: Tensor
    other_masks: Tensor
    boxes: Tensor
    objects: list[str]


def views(wanted: SimpleNamespace, seed: int, split: str, distractors: int = 0) -> Views:
    """From the file in --output, or made now; of the two-object images no crops."""
    path = wanted.output / f"{split}{'-two' * distractors}-{seed}.pt"
    if not path.exists():
        sizes, how = {split: IMAGES[split]}, {"image_size": SIZE, "distractors": distractors}
        images = cutouts.make_splits(wanted.data_root, wanted.photographs, sizes, seed, **how)[split]
        torch.save(tuple(_made(images, seed, 0 if distractors else CROPS if split == "train" else 1)), path)
    return Views(*torch.load(path, mmap=True))


def of_few_objects(images: Views, count: int, seed: int) -> Views:
    """The images of so many objects a class, drawn by the seed; of all objects where the count is 0."""
    if not count:
        return images
    draw, kept = random.Random(seed), set()
    for label in images.labels.unique().tolist():
        own = {name for name, its in zip(images.objects, images.labels.tolist(), strict=True) if its == label}
        kept |= set(draw.sample(sorted(own), min(count, len(own))))
    rows = torch.tensor([name in kept for name in images.objects])
    return Views(*(field[rows] for field in images[:-1]), [name for name in images.objects if name in kept])


@torch.no_grad()
def _made(images: cutouts.Cutouts, seed: int, crops: int) -> Views:
    torch.manual_seed(seed)
    trunk, rule = network(0)[0], RandomCropFlip(SIZE, scale=(0.4, 1))
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in models.normalisation(models.LITE, True))
    empty, parts = torch.zeros(SIZE, SIZE, dtype=torch.bool), []
    for rows in torch.arange(len(images)).split(BATCH):
        samples = [images[row] for row in rows.tolist()]
        original = torch.stack([sample.image for sample in samples])
        cut = [rule(original) for _ in range(crops)]
        looked_at = [original, *(view for view, _ in cut)]
        places = [crop.rows() for _, crop in cut] or [torch.empty(len(rows), 0, 5, dtype=torch.int64)]
        beside = [empty if sample.distractor < 0 else sample.distractor_mask for sample in samples]
        fields = (
            torch.stack([_through(trunk, (view - mean) / std) for view in looked_at], 1),
            torch.stack(places, 1) if cut else places[0],
            torch.tensor([sample.label for sample in samples]),
            torch.tensor([sample.distractor for sample in samples]),
            _at_centres(torch.stack([sample.mask for sample in samples])),
            _at_centres(torch.stack(beside)),
            torch.cat([sample.boxes[:1] for sample in samples]),
        )
        parts.append(fields)
    return Views(*map(torch.cat, zip(*parts, strict=True)), [plan.object.path for plan in images.plans])


def _through(trunk: nn.Module, images: Tensor, at_once: int = 4) -> Tensor:
    """What the trunk makes of images, as few at once as a CPU's caches hold."""
    return torch.cat([trunk(_channels_last(part)).contiguous() for part in images.split(at_once)])


def _at_centres(masks: Tensor) -> Tensor:
    step = SIZE // FINE
    return masks[:, step // 2 :: step, step // 2 :: step]


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


# ---- Training.


def network(seed: int, classes: int = 8) -> tuple[nn.Module, nn.Module]:
    """EfficientNet-Lite0's stages that stay as they are, and :class:`Head`; BatchNorm keeps its statistics."""
    torch.manual_seed(seed)
    wanted = SimpleNamespace(model=models.LITE, pretrained=True, init="", target_layer="", image_size=SIZE)
    model = models.create(wanted, classes).model.eval().to(memory_format=torch.channels_last)
    return nn.Sequential(model.conv_stem, model.bn1, *model.blocks[:-1]), Head(model)


class Head(nn.Module):
    """The last stage, the last convolution and the classifier: frozen features -> logits, class maps, features."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.features = nn.Sequential(model.blocks[-1], model.conv_head, model.bn2)
        self.classifier = model.classifier
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, frozen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[N, C, H, W] -> [N, K], [N, K, H, W] (Grad-CAM before the ReLU; their sum is the logit), [N, D, H, W]."""
        features = self.features(_channels_last(frozen))
        maps = F.conv2d(features, self.classifier.weight[:, :, None, None]) / features[0, 0].numel()
        return maps.sum((2, 3)) + self.classifier.bias, maps, features


def train(term: Term | None, images: Views, seed: int, steps: int) -> Head:
    """AdamW on warm-up and a half cosine; the term's weight rises over the first half."""
    _, net = network(seed)
    rates = [{"params": net.features.parameters(), "lr": 3e-4}, {"params": net.classifier.parameters(), "lr": 3e-3}]
    optimizer = torch.optim.AdamW(rates, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64)
    for number in range(steps):
        if len(order) < BATCH:
            order = torch.cat([order, torch.randperm(len(images.labels), generator=generator)])
        rows, order = order[:BATCH], order[BATCH:]
        chosen = torch.rand(BATCH, CROPS, generator=generator).argsort(1)[:, :2]  # two crops of each image
        frozen = [images.frozen[rows, 0], *(images.frozen[rows, own + 1] for own in chosen.T)]
        crops = [CropFlip.from_rows(images.crops[rows, own]) for own in chosen.T]
        logits, maps, _ = net(torch.cat(frozen))
        loss = 3 * F.cross_entropy(logits, images.labels[rows].repeat(3))
        if term:
            step = Step(maps.chunk(3), logits[:BATCH], crops, images.labels[rows], frozen[0], net)
            loss = loss + min(1, 2 * number / steps) * term(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net


# ---- Measuring.


class Seen(NamedTuple):
    """What a network makes of a split: logits [N, K], maps of original and crop [N, K, H, W], channel norms [N, H, W].

    Where there is no crop, its maps are the original's.
    """

    logits: Tensor
    maps: Tensor
    crop_maps: Tensor
    norms: Tensor


@torch.no_grad()
def look(net: Head, split: Views) -> Seen:
    """The network's view of all images of a split."""
    parts = []
    for frozen in split.frozen.split(BATCH):
        logits, maps, features = net(frozen[:, 0])
        crop_maps = net(frozen[:, 1])[1] if frozen.shape[1] > 1 else maps
        parts.append((logits, maps, crop_maps, metrics.channel_norm(features)))
    return Seen(*map(torch.cat, zip(*parts, strict=True)))


def percent(values: Tensor) -> float:
    """Mean over those that are known."""
    return 100 * values.double().nanmean().item()


def placed(fine: Tensor, split: Views) -> dict[str, float]:
    """How fine heatmaps lie: CH by box and by mask, effective area, pointing game, peak on the object."""
    boxes = split.boxes * (FINE / SIZE)
    near = metrics.box_masks(boxes, FINE, tolerance=metrics.POINTING_TOLERANCE * FINE)
    return {
        "box": percent(metrics.content_heatmap(fine, metrics.box_masks(boxes, FINE))),
        "mask": percent(metrics.content_heatmap(fine, split.masks)),
        "area": percent(metrics.effective_area(fine)),
        "pointing": percent(metrics.pointing_game(fine, near)),
        "peak": percent(metrics.pointing_game(fine, split.masks)),
    }


def follows(own: Tensor, twin: Tensor, crops: CropFlip) -> float:
    """Consistency: cosine of a crop's heatmap and the original's seen through that crop."""
    parts = zip(own.split(BATCH), twin.split(BATCH), crops.rows().split(BATCH), strict=True)
    fine = [(metrics.upsample(a, SIZE), metrics.upsample(b, SIZE), CropFlip.from_rows(rows)) for a, b, rows in parts]
    return percent(torch.cat([consistencies(*each) for each in fine]))


def likeness(maps: Tensor, labels: Tensor, second: Tensor) -> dict[str, float]:
    """Cosine of the label's fine heatmap and that of the best other class; how many of the latter are dead."""
    own, rival = (metrics.upsample(of_class(maps, classes), FINE) for classes in (labels, second))
    return {"likeness": percent(metrics.likeness(own, rival)), "second dead": 100 - percent(metrics.live(rival))}


def two_objects(seen: Seen, split: Views) -> dict[str, float]:
    """How often the heatmap of an object's class is denser on it than on the other object: the labelled, the other."""
    own, other = (metrics.upsample(of_class(seen.maps, classes), FINE) for classes in (split.labels, split.others))
    return {
        "denser": percent(metrics.denser(own, split.masks, split.other_masks)),
        "denser other": percent(metrics.denser(other, split.other_masks, split.masks)),
    }


def at_area(heatmaps: Tensor, split: Views, area: float) -> dict[str, float]:
    """How coarse heatmaps lie once a power has given them a mean effective area, in percent."""
    fine = metrics.upsample(heatmaps, FINE)
    return placed(metrics.sharpen(fine, metrics.matching_power(fine, area / 100)), split)


def controls(baseline: Seen, split: Views, area: float) -> dict[str, float]:
    """The baseline without further training, at an area.

    Its heatmaps by a power, by a blur and a power, those with the mean of all classes' maps taken out by a power, and
    the norms of its channels by a power.
    """
    heatmaps = of_class(baseline.maps, split.labels)
    by_blur = [at_area(metrics.blur(heatmaps, sigma), split, area) for sigma in BLURS]
    centred = of_class(explained(baseline.maps, baseline.logits, math.inf), split.labels)
    found = {
        "power": at_area(heatmaps, split, area),
        "blur": {name: max(each[name] for each in by_blur) for name in by_blur[0]},
        "centred": at_area(centred, split, area),
        "norm": at_area(baseline.norms, split, area),
    }
    return {f"{name} {how}": each[name] for how, each in found.items() for name in ("box", "mask", "peak")}


def measured(seen: Seen, split: Views, baseline: Seen) -> dict[str, float]:
    """Everything of one network on one split."""
    labels = split.labels
    second = seen.logits.scatter(1, labels[:, None], -math.inf).argmax(1)
    own, twin = (of_class(maps, labels) for maps in (seen.maps, seen.crop_maps))
    row = placed(metrics.upsample(own, FINE), split) | likeness(seen.maps, labels, second)
    row["accuracy"] = percent(label_ranks(seen.logits, labels) == 0)
    row["consistency"] = follows(own, twin, CropFlip.from_rows(split.crops[:, 0]))
    row |= controls(baseline, split, row["area"])
    for temperature in TEMPERATURES:
        maps = explained(seen.maps, seen.logits, temperature)
        at = placed(metrics.upsample(of_class(maps, labels), FINE), split) | likeness(maps, labels, second)
        row |= {f"{name} T={temperature:g}": value for name, value in at.items()}
    return row


# ---- Runs.


def run(wanted: SimpleNamespace, arm: str, seed: int, split: str) -> dict:
    """Train an arm unless its weights are there, look at a split, and measure; the baseline must have been run."""
    few = f"-{wanted.train_objects}" if wanted.train_objects else ""
    data = seed if wanted.data_seed is None else wanted.data_seed
    name, began = f"{seed}-{data}-{wanted.steps}{few}", time.process_time()
    weights = wanted.output / f"{arm}-{name}.weights.pt"
    if weights.exists():
        _, net = network(seed)
        net.load_state_dict(torch.load(weights))
    else:
        images = of_few_objects(views(wanted, data, "train"), wanted.train_objects, data)
        net = train(ARMS[arm](), images, seed, wanted.steps)
        torch.save(net.state_dict(), weights)
    seconds, images = time.process_time() - began, views(wanted, data, split)
    seen = look(net, images)
    baseline = seen if arm == "ce" else look(_load_baseline(wanted, name, seed), images)
    row = measured(seen, images, baseline)
    two = views(wanted, data, split, distractors=1)
    row |= two_objects(look(net, two), two)
    right = (label_ranks(seen.logits, images.labels) == 0).int().tolist()
    return {"seconds": seconds, **row, "right": right, "objects": images.objects}


def _load_baseline(wanted: SimpleNamespace, name: str, seed: int) -> Head:
    _, net = network(seed)
    net.load_state_dict(torch.load(wanted.output / f"ce-{name}.weights.pt"))
    return net


def main(arguments: list[str] | None = None) -> None:
    """Train and measure what is missing, then print the tables."""
    wanted = _parser().parse_args(arguments)
    wanted.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(wanted.threads)
    rows = _finished(wanted.output)
    arms = list(ARMS) if wanted.arms == ["all"] else wanted.arms
    for seed, arm, split in product(wanted.seeds, dict.fromkeys(["ce", *arms]), ["val", "test"][: 1 + wanted.test]):
        settings = {
            "arm": arm,
            "seed": seed,
            "data_seed": seed if wanted.data_seed is None else wanted.data_seed,
            "steps": wanted.steps,
            "train_objects": wanted.train_objects,
            "split": split,
        }
        if wanted.table or any(settings.items() <= row.items() for row in rows):
            continue
        rows.append({**settings, **run(wanted, arm, seed, split)})
        with open(wanted.output / "runs.jsonl", "a") as file:
            print(json.dumps(rows[-1]), file=file)
        print(f"{arm}, seed {seed}, {split}: {rows[-1]['seconds']:.0f} s", flush=True)
    print(tables(rows))


def _finished(output: Path) -> list[dict]:
    path = output / "runs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# ---- Tables.

COLUMNS = ("accuracy", "box", "mask", "area", "pointing", "peak", "consistency", "likeness", "second dead")
COLUMNS += ("denser", "denser other")
CONTROLS = tuple(f"{name} {how}" for name in ("box", "mask", "peak") for how in ("power", "blur", "centred", "norm"))
EXPLAINED = ("box", "mask", "peak", "likeness")


def tables(rows: list[dict]) -> str:
    """Of every setting and split a table of measures, one of controls, one of log-probabilities explained."""
    written = []
    keys = ("split", "steps", "train_objects")
    for key in dict.fromkeys(tuple(row[name] for name in keys) for row in rows):
        own = [row for row in rows if tuple(row[name] for name in keys) == key]
        few = f", {key[2]} objects a class" if key[2] else ""
        written.append(f"## {key[0]}, {key[1]} steps{few}")
        written.append(_table(own, COLUMNS, _gain))
        written.append(_table(own, CONTROLS))
        written += [_table(own, [f"{name} T={value:g}" for name in EXPLAINED]) for value in TEMPERATURES]
    return "\n\n".join(written)


def _table(
    rows: list[dict], columns: Sequence[str], last: Callable[[list[dict], list[dict]], str] | None = None
) -> str:
    """Mean and standard deviation over seeds, an arm a line."""
    head = ["arm", "seeds", *columns, *(["accuracy over ce, 95 %"] if last else [])]
    lines = [head, ["---"] * len(head)]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        line = [arm, str(len(own)), *(_mean([row[name] for row in own]) for name in columns)]
        lines.append([*line, last(own, [row for row in rows if row["arm"] == "ce"])] if last else line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _mean(values: list[float]) -> str:
    numbers = torch.tensor(values, dtype=torch.float64)
    return f"{numbers.mean():.1f}" + (f" ± {numbers.std():.1f}" if len(values) > 1 else "")


def _gain(rows: list[dict], baselines: list[dict], draws: int = 2000) -> str:
    """Difference of accuracy from the baseline, in points, and its interval by a bootstrap over objects."""
    objects: dict[str, list[int]] = {}
    for row, baseline in product(rows, baselines):
        if all(row[name] == baseline[name] for name in ("seed", "data_seed")):
            for name, right, before in zip(row["objects"], row["right"], baseline["right"], strict=True):
                objects.setdefault(name, []).append(right - before)
    sums, counts = (torch.tensor([float(of(each)) for each in objects.values()]) for of in (sum, len))
    chosen = torch.randint(len(sums), (draws, len(sums)), generator=torch.Generator().manual_seed(0))
    low, high = (100 * sums[chosen].sum(1) / counts[chosen].sum(1)).quantile(torch.tensor([0.025, 0.975])).tolist()
    return f"{100 * sums.sum() / counts.sum():+.1f} ({low:+.1f} to {high:+.1f})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-root", default="build/photographs/objects", metavar="DIR", help="class folders of cut-outs"
    )
    parser.add_argument(
        "--photographs", default="build/photographs/backgrounds", metavar="DIR", help="pictures behind them"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("build/search"), metavar="DIR", help="features, weights, runs"
    )
    parser.add_argument("--arms", nargs="+", default=["all"], choices=["all", *ARMS], metavar="ARM", help="all or some")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="of data and training")
    parser.add_argument(
        "--data-seed", type=int, metavar="SEED", help="the same data for all seeds; otherwise each its own"
    )
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="of each training")
    parser.add_argument("--train-objects", type=int, default=0, metavar="N", help="objects a class to train on; 0: all")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of PyTorch")
    parser.add_argument("--test", action="store_true", help="look at the test images as well")
    parser.add_argument("--table", action="store_true", help="print what is finished, train nothing")
    return parser


if __name__ == "__main__":
    main()
