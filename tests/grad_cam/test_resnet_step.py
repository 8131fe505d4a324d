"""A whole ResNet-18 training step: closed form and C++ against the step as the released code makes it."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from cgc_kernels import GradCAM, cgc_loss
from tests.support.cases import BACKENDS, CPP, crop_flip
from tests.support.compare import assert_close
from tests.support.models import ResNet18

BATCH, CLASSES, SIZE = 4, 10, 64
Step = tuple[torch.Tensor, dict[str, torch.Tensor]]


class Inputs:
    """Three views of a batch, labels, the transform of the second view, and a model."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        self.model = ResNet18(CLASSES)
        self.views = [torch.rand(BATCH, 3, SIZE, SIZE, generator=generator) for _ in range(3)]
        self.labels = torch.randint(CLASSES, (BATCH,), generator=generator)
        self.transform = crop_flip(generator, (SIZE, SIZE), ("any", "border", "full", "any"))

    def copy_of_model(self, dtype: torch.dtype) -> torch.nn.Module:
        """Steps change the running statistics of BatchNorm: each has a model of its own."""
        return copy.deepcopy(self.model).to(dtype)


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return Inputs()


def cross_entropies(inputs: Inputs, logits: list[torch.Tensor]) -> torch.Tensor:
    return sum(F.cross_entropy(view, inputs.labels) for view in logits)


def our_step(inputs: Inputs, backend: str, compile: Callable = lambda f: f, dtype=torch.float32) -> Step:
    """One forward of the wrapped model for all views, closed-form gradients, a fused loss."""
    model = inputs.copy_of_model(dtype)
    cam = GradCAM(model, "layer4", closed_form=True)

    def loss_of(view, aug_view, third):
        out, out_aug, extra = cam(view, aug_view, extra=(third,))
        term = cgc_loss(out.cam, out_aug.cam, inputs.transform, image_size=SIZE, backend=backend)
        return cross_entropies(inputs, [o.logits for o in (out, out_aug, extra)]) + 0.5 * term

    loss = compile(loss_of)(*(v.to(dtype) for v in inputs.views))
    return finish(loss, model)


def literal_step(inputs: Inputs, dtype=torch.float32) -> Step:
    """Three forwards, gradients by autograd.grad with a graph, the loss on full-size maps."""
    model, features = inputs.copy_of_model(dtype), []
    hook = model.layer4.register_forward_hook(lambda module, args, output: features.append(output))
    logits = [model(v.to(dtype)) for v in inputs.views]
    hook.remove()
    target = logits[0].argmax(dim=1, keepdim=True)
    cams = []
    for view in range(2):
        score = logits[view].gather(1, target).sum()
        cams.append((features[view], *torch.autograd.grad(score, features[view], create_graph=True)))
    term = cgc_loss(*cams, inputs.transform, image_size=SIZE, backend="reference")
    return finish(cross_entropies(inputs, logits) + 0.5 * term, model)


def finish(loss: torch.Tensor, model: torch.nn.Module) -> Step:
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_literal_step(inputs, backend):
    loss, grads = our_step(inputs, backend)
    expected_loss, expected = literal_step(inputs)
    assert_close(loss, expected_loss, tol=1e-6, what="loss")
    assert grads.keys() == expected.keys()
    for name, grad in grads.items():
        assert_close(grad, expected[name], tol=1e-4, what=name)


def test_the_loss_reaches_the_classifier_through_the_gradients(inputs):
    """Without this a step that detaches the weights used as gradients would pass for a weak loss."""
    _, whole = our_step(inputs, "torch")
    model = inputs.copy_of_model(torch.float32)
    cam = GradCAM(model, "layer4")
    out, out_aug = cam(*inputs.views[:2])
    detached = [(view.cam.features, view.cam.gradients.detach()) for view in (out, out_aug)]
    with_graph = cgc_loss(out.cam, out_aug.cam, inputs.transform, image_size=SIZE)
    without = cgc_loss(*detached, inputs.transform, image_size=SIZE)
    (gradient,) = torch.autograd.grad(with_graph, model.fc.weight)
    assert gradient.abs().max() > 1e-6
    assert whole["fc.weight"].isfinite().all()
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(without, model.fc.weight)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_in_one_graph_equals_eager(inputs, backend):
    torch._dynamo.reset()
    compiled = our_step(inputs, backend, lambda f: torch.compile(f, fullgraph=True, backend="aot_eager"))
    eager, truth = our_step(inputs, backend), literal_step(inputs, torch.float64)
    assert_close(compiled[0], eager[0], tol=1e-5, what="loss")
    for name in compiled[1]:
        error, eager_error = (distance(g[name], truth[1][name]) for g in (compiled[1], eager[1]))
        assert error <= 2 * eager_error, f"{name}: {error} compiled, {eager_error} eager"


def distance(grad: torch.Tensor, truth: torch.Tensor) -> float:
    assert grad.isfinite().all()
    return (grad.double() - truth).norm().item()


@pytest.mark.parametrize("backend", [CPP])
def test_the_default_backend_is_the_fused_one(inputs, backend):
    """What a user gets without asking is what is tested here."""
    by_default, explicit = our_step(inputs, "auto"), our_step(inputs, backend)
    assert torch.equal(by_default[0], explicit[0])


@pytest.mark.parametrize("backend", [CPP])
def test_channels_last_under_autocast(inputs, backend):
    """bfloat16 features beside the closed form's float32 gradients, in channels_last; as `torch` within bfloat16."""

    def step(name):
        model = inputs.copy_of_model(torch.float32).to(memory_format=torch.channels_last)
        cam = GradCAM(model, "layer4")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out, out_aug = cam(*(v.contiguous(memory_format=torch.channels_last) for v in inputs.views[:2]))
            assert (out.cam.features.dtype, out.cam.gradients.dtype) == (torch.bfloat16, torch.float32)
            loss = cgc_loss(out.cam, out_aug.cam, inputs.transform, image_size=SIZE, backend=name)
        return finish(loss + 0 * model.fc.bias.sum(), model)

    (loss, grads), (expected_loss, expected) = step(backend), step("torch")
    assert_close(loss, expected_loss, tol=1e-5, what="loss")
    for name, grad in grads.items():
        assert_close(grad, expected[name], tol=2e-2, floor=1e-3, what=name)
