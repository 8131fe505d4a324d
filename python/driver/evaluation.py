"""What a model says about images: predictions and heatmaps of their views."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from cgc_kernels import GradCAM, gradcam
from cgc_kernels.metrics import channel_norm, upsample

from . import faithfulness, measuring, metrics
from .data import Data, DataError, Images
from .evaluation_views import EvaluationBatch, batches
from .explained import BATCH, Explained, packed

MORE_VIEWS = 3  # augmented views beside the first whose heatmaps of the test images are averaged as a control

# (views, labels) -> logits of the first view [B, K], coarse heatmaps [B, H, W] of every view for the labels, and, where
# it knows the features, their channel norms [B, H, W] of the first view; its attribute ``model`` is the classifier, in
# eval mode.
Explainer = Callable[[Sequence[Tensor], Tensor], tuple]


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
    rows, scores = [], []
    how = {"seed": seed, "stream": stream, "workers": workers, "more": MORE_VIEWS}
    for batch in source or batches(images, range(len(images)), data, **how):
        batch = batch.to(device)
        rows.append(_answers(explainer, batch))
        wanted = faithful - BATCH * (len(rows) - 1)
        if wanted > 0:
            fine = upsample(rows[-1]["heatmaps"][:wanted].to(device), data.image_size)
            scores.append(faithfulness.insertion_deletion(cam.model, batch.original[:wanted], fine))
    nothing = torch.zeros(0, 2)
    scores = [torch.cat(values) for values in zip(*scores, strict=True)] or [nothing, nothing]
    insertion, deletion = (values.double().cpu() for values in scores)
    columns = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    for name in ("masks", "distractor_masks"):
        columns[name] = columns[name] if columns[name].any() else columns[name][:, :0, :0]
    groups = _numbered(images.groups)
    explained = Explained(**columns, groups=groups, insertion=insertion, deletion=deletion, image_size=data.image_size)
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
    """Every measure of some images that takes no more than their two views, in the order of ``indices``: CPU tensors
    [len(indices)].

    A share of the images can be measured elsewhere, and the parts joined before :func:`measuring.summarise`; no
    indices, no entries. ``source``: their batches where they are at hand, as ``cam`` takes them.
    """
    explainer = as_explainer(cam)
    rows = []
    for batch in source or batches(images, indices, data, seed=seed, stream=stream, workers=workers):
        batch = batch.to(device)
        logits, maps, *_ = explainer((batch.original, batch.augmented), batch.labels)
        ranks = metrics.label_ranks(logits, batch.labels)
        fine = [upsample(view.float(), data.image_size) for view in maps]
        where = measuring.places(batch.boxes, batch.box_counts, data.image_size, batch.masks)
        row = measuring.of_maps(*fine, where, batch.crops)
        row |= {"label": batch.labels, "corrupt": batch.corrupt, "correct": ranks == 0, "top5": ranks < 5}
        rows.append({name: value.cpu() for name, value in row.items()})
    return {name: torch.cat([row[name] for row in rows]) for name in (rows[0] if rows else ())}


def _numbered(names: Sequence[str]) -> Tensor:
    """int64 [N], the place of each name in their alphabet."""
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return torch.tensor([numbers[name] for name in names])


def as_explainer(cam: GradCAM | Explainer) -> Explainer:
    """Our Grad-CAM as an explainer; any other as it is."""
    if not isinstance(cam, GradCAM):
        return cam
    cam.eval()

    @torch.no_grad()
    def explainer(views, labels):
        outputs = cam(*views, target=labels)
        return outputs[0].logits, [gradcam(output.cam) for output in outputs], channel_norm(outputs[0].cam.features)

    return explainer


def _centred(labels: Tensor, logits: Tensor) -> Tensor:
    """Weights [N, K] of the logits: the label's less the mean of all, which no probability depends on."""
    return one_hot(labels, logits.shape[1]).to(logits.dtype) - 1 / logits.shape[1]


def _answers(explainer: Explainer, batch: EvaluationBatch) -> dict[str, Tensor]:
    """A batch's columns of :class:`Explained`, on the CPU."""
    views = (batch.original, batch.augmented, *batch.more.unbind(1))
    logits, (heatmaps, aug_heatmaps, *more), *norms = explainer(views, batch.labels)
    runner_up = logits.scatter(1, batch.labels[:, None], -torch.inf).argmax(1)
    none = torch.zeros_like(heatmaps)
    distractors, there = none, (batch.distractors >= 0)[:, None, None]
    if there.any():
        distractors = torch.where(there, explainer(views[:1], batch.distractors.clamp(min=0))[1][0], 0)
    columns = {
        "predicted": logits.argmax(1),
        "ranks": metrics.label_ranks(logits, batch.labels),
        "heatmaps": heatmaps,
        "aug_heatmaps": aug_heatmaps,
        "runner_up_heatmaps": explainer(views[:1], runner_up)[1][0] if logits.shape[1] > 1 else none,
        "distractor_heatmaps": distractors,
        "norms": norms[0] if norms else none,
        "centred_heatmaps": explainer(views[:1], _centred(batch.labels, logits))[1][0] if norms else none,
        "labels": batch.labels,
        "crops": batch.crops.rows(),
        "more_heatmaps": torch.stack(more, 1) if more else none[:, None][:, :0],
        "more_crops": batch.more_crops,
        "boxes": batch.boxes,
        "box_counts": batch.box_counts,
        "masks": packed(batch.masks),
        "distractors": batch.distractors,
        "distractor_masks": packed(batch.distractor_masks),
        "corrupt": batch.corrupt,
    }
    return {name: (value.float() if value.is_floating_point() else value).cpu() for name, value in columns.items()}
