"""What the tests of GradCAM share: small models, heads that pool and heads that only seem to, losses."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

from cgc_kernels.grad_cam import GradCAM
from tests.support.models import TinyNet

CHANNELS, CLASSES = 6, 5


def views(count=2, batch=3, size=8):
    return [torch.randn(batch, 3, size, size, dtype=torch.float64) for _ in range(count)]


def tiny(head=None):
    return TinyNet(head).double()


def both_paths(net=None, layer="body"):
    net = net or tiny()
    closed, by_autograd = GradCAM(net, layer, closed_form=True), GradCAM(net, layer, closed_form=False)
    assert closed.closed_form
    assert not by_autograd.closed_form
    return closed, by_autograd


def cam_loss(outputs):
    """A scalar that depends on every part of every CAM and is nonlinear in the gradients."""
    total = 0.0
    for output in outputs:
        features, gradients, _ = output.cam
        pooled = gradients.mean((2, 3)) if gradients.ndim == 4 else gradients
        total = total + F.relu((pooled[:, :, None, None] * features).sum(1)).square().sum()
        total = total + F.cross_entropy(output.logits, output.logits.argmax(1))
    return total


def parameter_gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_close(got, want, atol=1e-12):
    torch.testing.assert_close(got, want, rtol=1e-12, atol=atol)


def hooks_on(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def linear():
    return nn.Linear(CHANNELS, CLASSES)


class Head(nn.Module):
    """A head from a function of (features, fc)."""

    def __init__(self, function, **modules):
        super().__init__()
        self.fc = linear()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.function(self, x)


POOLED_HEADS = {
    "modules": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear()),
    "pair": lambda: nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(1), linear()),
    "identity": lambda: nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Identity(), nn.Flatten(), linear()),
    "dropout0": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.0), linear()),
    "no bias": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, CLASSES, bias=False)),
    "identity after it": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(), nn.Identity()),
    "flatten after it": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(), nn.Flatten()),
    "convolution": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(CHANNELS, CLASSES, 1), nn.Flatten()),
    "functions": lambda: Head(lambda m, x: m.fc(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))),
    "keywords": lambda: Head(
        lambda m, x: m.fc(torch.flatten(F.adaptive_avg_pool2d(input=x, output_size=1), start_dim=1))
    ),
    "flatten method": lambda: Head(lambda m, x: m.fc(F.adaptive_avg_pool2d(x, [1, 1]).flatten(1))),
    "mean": lambda: Head(lambda m, x: m.fc(x.mean((2, 3)))),
    "mean negative": lambda: Head(lambda m, x: m.fc(x.mean(dim=[-1, -2]))),
    "mean keepdim": lambda: Head(lambda m, x: m.fc(torch.mean(x, (-2, -1), keepdim=True).flatten(1, -1))),
}


class StagedPool(nn.Module):
    """A pool that attributes and defaults decide on."""

    def __init__(self, drop=0.0):
        super().__init__()
        self.drop, self.dims = drop, (-2, -1)

    def forward(self, x, keep: bool = False):
        if x.ndim != 4:
            raise ValueError(f"four dimensions, got {x.shape}")
        x = x.mean(self.dims, keepdim=keep)
        if self.drop:
            x = F.dropout(x, self.drop, self.training)
        return x


class Staged(TinyNet):
    """As timm's: methods, defaults, a loop over blocks, attributes that decide."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Identity(), self.body])
        self.pool, self.end = StagedPool(), nn.Identity()
        self.checkpointing = False

    def features(self, x):
        assert x.dtype.is_floating_point
        if self.checkpointing and not torch.jit.is_scripting():
            x = torch.utils.checkpoint.checkpoint(self.blocks[1], x)
        else:
            for block in self.blocks:
                x = block(x)
        return x

    def forward_head(self, x, pre_logits: bool = False):
        x = self.pool(x)
        return x if pre_logits else self.end(self.fc(x))

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return self.forward_head(self.features(x))


class NoBias(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight)


def hooked_linear():
    fc = linear()
    fc.register_forward_hook(lambda module, args, output: output * 2)
    return fc


def backward_hooked_linear():
    fc = linear()
    fc.register_full_backward_hook(lambda module, grads, outs: tuple(2 * g for g in grads))
    return fc


def patched_linear():
    fc = linear()
    fc.forward = lambda x: F.linear(x, 3 * fc.weight)
    return fc


def pruned_linear():
    fc = linear()
    prune.l1_unstructured(fc, "weight", amount=0.5)
    return fc


def hooked_sequential():
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear())
    head.register_forward_hook(lambda module, args, output: output * 2)
    return head


def pooled(*tail):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *tail)


NEAR_MISSES = {
    "dropout": lambda: pooled(nn.Dropout(0.5), linear()),
    "batch norm": lambda: pooled(nn.BatchNorm1d(CHANNELS), linear()),
    "relu": lambda: nn.Sequential(nn.ReLU(), pooled(linear())),
    "max pool": lambda: nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), linear()),
    "pool to 2x2": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * CHANNELS, CLASSES)),
    "function pool to 2x2": lambda: Head(
        lambda m, x: m.wide(F.adaptive_avg_pool2d(x, 2).flatten(1)), wide=nn.Linear(4 * CHANNELS, CLASSES)
    ),
    "no pool": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16 * CHANNELS, CLASSES)),
    "mean over one axis": lambda: Head(lambda m, x: m.wide(x.mean(2).flatten(1)), wide=nn.Linear(24, CLASSES)),
    "mean over channels": lambda: Head(lambda m, x: m.wide(x.mean((1, 2))), wide=nn.Linear(4, CLASSES)),
    "wide convolution": lambda: nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(CHANNELS, CLASSES, 3, padding=1), nn.Flatten()
    ),
    "grouped convolution": lambda: nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(CHANNELS, 4, 1, groups=2), nn.Flatten()
    ),
    "convolution before the pool": lambda: nn.Sequential(
        nn.Conv2d(CHANNELS, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ),
    "two linear": lambda: pooled(nn.Linear(CHANNELS, CHANNELS), linear()),
    "weight norm": lambda: pooled(parametrizations.weight_norm(linear())),
    "pruned": lambda: pooled(pruned_linear()),
    "subclass": lambda: pooled(NoBias(CHANNELS, CLASSES)),
    "patched forward": lambda: pooled(patched_linear()),
    "forward hook on fc": lambda: pooled(hooked_linear()),
    "backward hook on fc": lambda: pooled(backward_hooked_linear()),
    "hook on the head": hooked_sequential,
    "scaled logits": lambda: Head(lambda m, x: 2 * m.fc(x.mean((2, 3)))),
    "softmax": lambda: pooled(linear(), nn.Softmax(1)),
    "features twice": lambda: Head(lambda m, x: m.fc(x.mean((2, 3))) + x.sum((1, 2, 3))[:, None]),
    "pooled twice": lambda: Head(lambda m, x: (lambda v: m.fc(v) + v[:, :1])(x.mean((2, 3)))),
    "fc applied twice": lambda: Head(lambda m, x: m.fc(x.mean((2, 3))) + m.fc(x.amax((2, 3)))),
    "in-place on pooled": lambda: Head(lambda m, x: (lambda v: (v.mul_(2), m.fc(v))[1])(x.mean((2, 3)))),
    "functional linear": lambda: Head(lambda m, x: F.linear(x.mean((2, 3)), m.fc.weight)),
    "detached logits of fc": lambda: Head(lambda m, x: m.fc(x.mean((2, 3))) + 0 * m.fc(x.mean((2, 3))).detach()),
    "dropout in training only": lambda: Head(
        lambda m, x: m.fc(F.dropout(x.mean((2, 3)), 0.5) if m.training else x.mean((2, 3)))
    ),
    "scaled in evaluation only": lambda: Head(
        lambda m, x: m.fc(x.mean((2, 3))) if m.training else 2 * m.fc(x.mean((2, 3)))
    ),
    "control flow": lambda: Head(lambda m, x: m.fc(x.mean((2, 3))) * (1 if x.sum() > -1e9 else 0)),
}
