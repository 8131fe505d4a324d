"""What a model says about images: predictions and heatmaps of both views, and every measure of them.

Images come as the model sees them in evaluation: resized, cut in the middle, normalised; the boxes follow. The
augmented view of an image is decided by the seed and the image's index alone, so that every method is measured on the
same views.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from cgc_kernels import CropFlip, GradCAM, gradcam

from . import faithfulness, metrics
from . import workers as loading
from .data import CorruptImage, Data, DataError, Images
from .views import generator, original_view, random_crops

BATCH = 100  # images explained or measured at once; a multiple of metrics.TWIN_BATCH
SHARPNESS_IMAGES = 4096  # at most so many heatmaps decide the power of the sharpness-matched baseline
MEANS = ("content_heatmap", "flat_content_heatmap", "effective_area", "consistency", "insertion", "deletion")

# (views, labels) -> logits of the first view [B, K], coarse heatmaps [B, H, W] of every view for the labels; its
# attribute ``model`` is the classifier, in eval mode.
Explainer = Callable[[Sequence[Tensor], Tensor], tuple[Tensor, list[Tensor]]]


class EvaluationBatch(NamedTuple):
    """Images of a split as a model sees them: normalised, [B, 3, S, S].

    masks: bool [B, S, S], the labelled objects' pixels; nowhere true where they are not known. distractors: int64 [B],
    another class that is in the image, -1 if none is known; distractor_masks: its object's pixels, likewise.
    """

    original: Tensor
    augmented: Tensor
    crops: CropFlip
    labels: Tensor
    boxes: Tensor
    box_counts: Tensor
    corrupt: Tensor
    masks: Tensor
    distractors: Tensor
    distractor_masks: Tensor

    def to(self, device: torch.device) -> "EvaluationBatch":
        """The same on a device."""
        return EvaluationBatch(*(field.to(device) for field in self))


class Explained(NamedTuple):
    """What a model says about N images, on the CPU; saved as it is.

    Attributes:
        predicted: int64 [N], the class with the largest logit.
        ranks: int64 [N], how many classes come before the label.
        heatmaps: float32 [N, H, W] of the original views, for the labelled class.
        aug_heatmaps: float32 [N, H, W] of the augmented views, for the same class.
        labels: int64 [N].
        crops: int64 [N, 5], the augmented views: top, left, height, width, flip.
        boxes: float32 [T, 4] of all images, one after the other, in pixels of the view.
        box_counts: int64 [N], how many of them are each image's.
        corrupt: bool [N], images that could not be read; nothing else of them counts.
        insertion, deletion: float64 [M, steps + 1], scores of the first M images; M = 0 if not asked for.
        image_size: side of the view in pixels.
    """

    predicted: Tensor
    ranks: Tensor
    heatmaps: Tensor
    aug_heatmaps: Tensor
    labels: Tensor
    crops: Tensor
    boxes: Tensor
    box_counts: Tensor
    corrupt: Tensor
    insertion: Tensor
    deletion: Tensor
    image_size: int

    @property
    def crop_flip(self) -> CropFlip:
        """The augmented views as the loss takes them."""
        *box, flip = self.crops.unbind(1)
        return CropFlip(*box, flip.bool())


def explain(
    cam: GradCAM | Explainer,
    images: Images,
    data: Data,
    device: torch.device,
    *,
    seed: int,
    stream: str = "test",
    faithful: int = 0,
    workers: int = 0,
    source: Iterable[EvaluationBatch] | None = None,
) -> Explained:
    """Predictions and heatmaps of all images; insertion and deletion of the first ``faithful`` of them.

    ``cam`` is put in eval mode and left there. ``seed`` and ``stream`` ("val" or "test") decide the augmented views.
    ``source``: the batches of all images where they are at hand, as ``cam`` takes them.
    Raises CorruptImage for an unreadable image if ``data.strict``, DataError where all are.
    """
    explainer = as_explainer(cam)
    parts, scores = [], []
    for batch in source or batches(images, range(len(images)), data, seed=seed, stream=stream, workers=workers):
        batch = batch.to(device)
        logits, (heatmaps, aug_heatmaps) = explainer((batch.original, batch.augmented), batch.labels)
        ranks = metrics.label_ranks(logits, batch.labels)
        parts.append((logits.argmax(1), ranks, heatmaps, aug_heatmaps, batch.labels, _crop_rows(batch.crops)))
        parts[-1] = [value.float().cpu() if value.is_floating_point() else value.cpu() for value in parts[-1]]
        parts[-1] += [value.cpu() for value in (batch.boxes, batch.box_counts, batch.corrupt)]
        wanted = faithful - BATCH * (len(parts) - 1)
        if wanted > 0:
            fine = metrics.fine(heatmaps[:wanted].float(), data.image_size)
            scores.append(faithfulness.insertion_deletion(cam.model, batch.original[:wanted], fine))
    nothing = torch.zeros(0, 2)
    scores = [torch.cat(values) for values in zip(*scores, strict=True)] or [nothing, nothing]
    insertion, deletion = (values.double().cpu() for values in scores)
    columns = [torch.cat(values) for values in zip(*parts, strict=True)]
    explained = Explained(*columns, insertion, deletion, data.image_size)
    if explained.corrupt.all():
        raise DataError(f"--data-root must hold {stream} images that can be read, got none of {len(images)}")
    return explained


def per_image(
    cam: GradCAM | Explainer,
    images: Images,
    indices: Sequence[int],
    data: Data,
    device: torch.device,
    *,
    seed: int,
    stream: str,
    workers: int = 0,
    source: Iterable[EvaluationBatch] | None = None,
) -> dict[str, Tensor]:
    """Every measure but twin retrieval of some images, in the order of ``indices``: CPU tensors [len(indices)].

    A share of the images can be measured elsewhere, and the parts joined before :func:`summarise`; no indices, no
    entries. ``source``: their batches where they are at hand, as ``cam`` takes them.
    """
    explainer = as_explainer(cam)
    rows = []
    for batch in source or batches(images, indices, data, seed=seed, stream=stream, workers=workers):
        batch = batch.to(device)
        logits, maps = explainer((batch.original, batch.augmented), batch.labels)
        ranks = metrics.label_ranks(logits, batch.labels)
        row = _measures(*maps, batch.crops, batch.boxes, batch.box_counts, data.image_size)
        row |= {"label": batch.labels, "corrupt": batch.corrupt, "correct": ranks == 0, "top5": ranks < 5}
        rows.append({name: value.cpu() for name, value in row.items()})
    return {name: torch.cat([row[name] for row in rows]) for name in (rows[0] if rows else ())}


def measures(explained: Explained, power: float | None = None) -> dict[str, Tensor]:
    """Every measure of every image [N]; with ``power``, of the fine heatmaps raised to it.

    Keys: label, corrupt, correct, top5, dead, content_heatmap, flat_content_heatmap, effective_area, pointing,
    consistency, twin, insertion, deletion. NaN where there is nothing to measure.
    """
    rows = []
    ends = [0, *explained.box_counts.cumsum(0).tolist()]
    for start in range(0, len(explained.labels), BATCH):
        part = slice(start, start + BATCH)
        maps = explained.heatmaps[part], explained.aug_heatmaps[part]
        crops = CropFlip(*(field[part] for field in explained.crop_flip))
        boxes = explained.boxes[ends[start] : ends[min(start + BATCH, len(ends) - 1)]]
        counts = explained.box_counts[part]
        rows.append(_measures(*maps, crops, boxes, counts, explained.image_size, power=power, twins=True))
    values = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    values |= {"label": explained.labels, "corrupt": explained.corrupt}
    values |= {"correct": explained.ranks == 0, "top5": explained.ranks < 5}
    for name in ("insertion", "deletion"):
        scores = getattr(explained, name)
        values[name] = torch.full((len(explained.labels),), torch.nan, dtype=torch.float64)
        values[name][: len(scores)] = faithfulness.area_under(scores)
        values[name][values["dead"]] = torch.nan
    return values


def summarise(values: dict[str, Tensor]) -> dict[str, float]:
    """Means in percent of what :func:`per_image` or :func:`measures` returns; what nothing is known of is left out.

    The pointing game is the mean of the classes' means; corrupt images count nowhere but as corrupt_images, a number.
    """
    readable = {name: value[~values["corrupt"]] for name, value in values.items()}
    if not len(readable["label"]):
        return {"corrupt_images": float(values["corrupt"].sum())}
    summary = {
        "accuracy": _percent(readable["correct"]),
        "top5": _percent(readable["top5"]),
        "pointing_game": 100 * metrics.mean_of_classes(readable["pointing"], readable["label"]),
        "dead_heatmaps": _percent(readable["dead"]),
    }
    summary |= {name: 100 * readable[name].nanmean().item() for name in MEANS if name in readable}
    if "twin" in readable:
        summary["twin_retrieval"] = _percent(readable["twin"])
    summary = {name: value for name, value in summary.items() if value == value}
    return summary | {"corrupt_images": float(values["corrupt"].sum())}


def sharpness_matched(baseline: Explained, area: float) -> dict[str, float]:
    """Content Heatmap and consistency of the baseline's heatmaps at the mean effective area ``area`` (percent).

    All its fine heatmaps are raised to the one power that gives them that area.
    """
    stride = -(-len(baseline.heatmaps) // SHARPNESS_IMAGES)
    chosen = metrics.fine(baseline.heatmaps[~baseline.corrupt][::stride], baseline.image_size)
    power = metrics.match_sharpness(chosen, area / 100)
    if power != power:
        return {}
    summary = summarise(measures(baseline, power))
    wanted = ("content_heatmap", "consistency")
    return {f"sharpness_matched_{name}": summary[name] for name in wanted if name in summary}


def per_class(values: dict[str, Tensor], classes: Sequence[str]) -> list[dict]:
    """The summary of every class that has a readable image, in the order of the classes, with its name and number."""
    rows = []
    for number in values["label"][~values["corrupt"]].unique().tolist():
        own = {name: value[values["label"] == number] for name, value in values.items()}
        summary = summarise(own)
        rows.append({"class": classes[number], "images": int((~own["corrupt"]).sum()), **summary})
    return rows


def batches(
    images: Images, indices: Sequence[int], data: Data, *, seed: int, stream: str, workers: int = 0
) -> Iterator[EvaluationBatch]:
    """The images of these indices, normalised, with their augmented views; on the CPU."""
    crops = evaluation_crops(len(images), data.image_size, seed, stream)
    prepared = _Prepared(images, list(indices), data.image_size, data.strict)
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    for number, items in enumerate(loading.load(prepared, batch_size=BATCH, num_workers=workers)):
        own = torch.as_tensor(prepared.indices[number * BATCH : number * BATCH + len(items)])
        original = torch.stack([item.image for item in items])
        chosen = CropFlip(*(field[own] for field in crops))
        augmented = chosen.apply(original)
        for item in items:
            _report(item.problem)
        yield EvaluationBatch(
            (original - mean) / std,
            (augmented - mean) / std,
            chosen,
            torch.tensor([item.label for item in items]),
            torch.cat([item.boxes for item in items]),
            torch.tensor([len(item.boxes) for item in items]),
            torch.tensor([bool(item.problem) for item in items]),
            torch.stack([item.mask for item in items]),
            torch.tensor([item.distractor for item in items]),
            torch.stack([item.distractor_mask for item in items]),
        )


def evaluation_crops(count: int, size: int, seed: int, stream: str) -> CropFlip:
    """The augmented views of a split, the same whenever and for whichever method it is evaluated."""
    return random_crops(count, size, generator(seed, stream))


def boxes_in_view(boxes: Tensor, size: tuple[int, int], side: int) -> Tensor:
    """Where boxes [n, 4] of an image of ``size`` (width, height) lie in its evaluation view of ``side`` pixels.

    Cut to the view; boxes that lie wholly outside are left out.
    """
    width, height = size
    resized = resized_size(width, height, side)
    scale = torch.tensor([resized[0] / width, resized[1] / height] * 2)
    offset = torch.tensor([round((length - side) / 2.0) for length in resized] * 2)
    moved = (boxes * scale - offset).clamp(0, side)
    return moved[(moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])]


def mask_in_view(mask: Tensor, side: int) -> Tensor:
    """A mask [H, W] of an image's pixels in its evaluation view, moved as its boxes are: bool [side, side]."""
    width, height = resized_size(*mask.shape[::-1], side)
    top, left = (round((length - side) / 2.0) for length in (height, width))
    resized = interpolate(mask[None, None].float(), (height, width), mode="nearest-exact")[0, 0] > 0
    return resized[top : top + side, left : left + side]


def resized_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height after the shorter side became ``side`` * 256 / 224, as torchvision's Resize rounds them."""
    shorter = round(side * 256 / 224)
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


class _Item(NamedTuple):
    image: Tensor
    label: int
    boxes: Tensor
    problem: str
    mask: Tensor
    distractor_mask: Tensor
    distractor: int


class _Prepared(Dataset):
    """Evaluation views as tensors, each with its boxes; a grey image of label 0 stands for one that cannot be read."""

    def __init__(self, images: Images, indices: list[int], side: int, strict: bool):
        self.images, self.indices, self.side, self.strict = images, indices, side, strict

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, numbers: list[int]) -> list[_Item]:
        return [self._item(number) for number in numbers]

    def _item(self, number: int) -> _Item:
        try:
            image, label, boxes, _, mask, distractor, distractor_mask = self.images[self.indices[number]]
            problem = ""
        except CorruptImage as error:
            if self.strict:
                raise
            image, label, boxes = torch.full((3, self.side, self.side), 0.5), 0, torch.zeros(0, 4)
            mask, distractor, distractor_mask, problem = None, -1, None, str(error)
        masks = [mask, distractor_mask]
        if not isinstance(image, Tensor):
            boxes = boxes_in_view(boxes, image.size, self.side)
            masks = [None if own is None else mask_in_view(own, self.side) for own in masks]
        nowhere = torch.zeros(self.side, self.side, dtype=torch.bool)
        masks = [nowhere if own is None else own for own in masks]
        return _Item(as_tensor(original_view(image, self.side)), label, boxes, problem, *masks, distractor)


def as_tensor(image) -> Tensor:
    """A PIL RGB image as float32 [3, H, W] in [0, 1]; a tensor as it is."""
    if isinstance(image, Tensor):
        return image
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


_reported: set[str] = set()


def _report(problem: str) -> None:
    """Name an unreadable image, once."""
    if problem and problem not in _reported:
        _reported.add(problem)
        print(f"{problem}; skipped", file=sys.stderr)


def _measures(
    heatmaps: Tensor,
    aug_heatmaps: Tensor,
    crops: CropFlip,
    boxes: Tensor,
    counts: Tensor,
    size: int,
    power: float | None = None,
    twins: bool = False,
) -> dict[str, Tensor]:
    maps, aug_maps = (metrics.fine(view.float(), size) for view in (heatmaps, aug_heatmaps))
    if power is not None:
        maps, aug_maps = (metrics.sharpen(view, power) for view in (maps, aug_maps))
    masks = metrics.box_masks(boxes, counts, size)
    near = metrics.box_masks(boxes, counts, size, metrics.POINTING_TOLERANCE * size)
    shares = masks.flatten(1).double().mean(1)
    values = {
        "dead": ~metrics.live(heatmaps),
        "content_heatmap": metrics.content_shares(maps, masks),
        "flat_content_heatmap": torch.where(counts > 0, shares, torch.nan),
        "effective_area": metrics.effective_areas(maps),
        "pointing": metrics.pointing_hits(maps, near),
        "consistency": metrics.consistencies(maps, aug_maps, crops),
    }
    return values | ({"twin": metrics.twins_found(maps, aug_maps, crops)} if twins else {})


def as_explainer(cam: GradCAM | Explainer) -> Explainer:
    """Our Grad-CAM as an explainer; any other as it is."""
    if not isinstance(cam, GradCAM):
        return cam
    cam.eval()

    @torch.no_grad()
    def explainer(views, labels):
        outputs = cam(*views, target=labels)
        return outputs[0].logits, [gradcam(output.cam) for output in outputs]

    return explainer


def _crop_rows(crops: CropFlip) -> Tensor:
    return torch.stack([field.long() for field in crops], 1)


def _percent(hits: Tensor) -> float:
    return 100 * hits.double().mean().item()
