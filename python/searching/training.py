"""One training."""

import math

import torch
import torch.nn.functional as F

from cgc_kernels import CropFlip

from . import sizes
from .networks import Head, network
from .terms import Step, Term
from .views import Views


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
        if len(order) < sizes.BATCH:
            order = torch.cat([order, torch.randperm(len(images.labels), generator=generator)])
        rows, order = order[: sizes.BATCH], order[sizes.BATCH :]
        chosen = torch.rand(sizes.BATCH, sizes.CROPS, generator=generator).argsort(1)[:, :2]  # two crops of each image
        frozen = [images.frozen[rows, 0], *(images.frozen[rows, own + 1] for own in chosen.T)]
        crops = [CropFlip.from_rows(images.crops[rows, own]) for own in chosen.T]
        logits, maps, _ = net(torch.cat(frozen))
        loss = 3 * F.cross_entropy(logits, images.labels[rows].repeat(3))
        if term:
            step = Step(maps.chunk(3), logits[: sizes.BATCH], crops, images.labels[rows], frozen[0], net)
            loss = loss + min(1, 2 * number / steps) * term(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net
