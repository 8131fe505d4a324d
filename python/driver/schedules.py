"""What changes while training goes on: the learning rate and the weight of the heatmap loss."""

import math


def learning_rate(settings, epoch: float) -> float:
    """The learning rate at a fractional epoch, as a share of the highest, by the settings' schedule."""
    if settings.schedule == "cosine":
        return cosine(epoch, settings.warmup, settings.epochs)
    return steps(epoch, settings.warmup, settings.epochs, settings.decay_epochs, settings.decay_factor)


def cosine(epoch: float, warmup: int, epochs: int) -> float:
    """Linear warm-up, which takes at most half of the epochs, then half a cosine to 0."""
    rising = min(warmup, epochs / 2)
    if epoch < rising:
        return epoch / rising
    return 0.5 * (1 + math.cos(math.pi * (epoch - rising) / (epochs - rising)))


def steps(epoch: float, warmup: int, epochs: int, decays: tuple[int, ...], factor: float) -> float:
    """Linear warm-up as above, then 1 times `factor` for each of `decays`, in finished epochs, that has passed."""
    rising = min(warmup, epochs / 2)
    if epoch < rising:
        return epoch / rising
    return factor ** sum(epoch > decay for decay in decays)


def ramp(progress: float, share: float) -> float:
    """Weight of the heatmap loss at `progress` in 0..1, rising linearly from 0 to 1 over the first `share`."""
    return min(1.0, progress / share) if share > 0 else 1.0
