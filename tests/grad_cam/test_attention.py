"""Attention from the target layer on takes its plain form, which can be differentiated twice, and only there."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends, sdpa_kernel
from torch.utils.checkpoint import CheckpointError, checkpoint

from cgc_kernels import GradCAM, tokens_to_map
from cgc_kernels.grad_cam.attention import unfused
from tests.support.models import TinyViT

pytestmark = pytest.mark.usefixtures("single_thread")


class Block(nn.Module):
    """Attention that notes which kernels it may use."""

    def __init__(self):
        super().__init__()
        self.norm1, self.qkv, self.seen = nn.LayerNorm(8), nn.Linear(8, 24), []

    def forward(self, x):
        self.seen.append(set(_cur_sdpa_kernel_backends()))
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        self.seen.append(set(_cur_sdpa_kernel_backends()))
        return x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@pytest.fixture
def vit():
    net = TinyViT(depth=3)
    net.blocks = nn.ModuleList(Block() for _ in range(3))
    return net


def train_step(cam, *xs):
    loss = sum((out.cam.features * out.cam.gradients).square().sum() for out in cam(*xs))
    loss.backward()
    return loss.item()


def test_a_step_runs_with_attention_plain_from_the_layer_on(vit):
    usual = set(_cur_sdpa_kernel_backends())
    assert usual > {SDPBackend.MATH}
    train_step(GradCAM(vit, "blocks.1.norm1", reshape=tokens_to_map(3, 4)), torch.randn(2, 3, 12, 16))
    assert vit.blocks[0].seen == [usual, usual]
    assert vit.blocks[1].seen == [usual, {SDPBackend.MATH}]
    assert vit.blocks[2].seen == [{SDPBackend.MATH}] * 2
    assert set(_cur_sdpa_kernel_backends()) == usual
    assert vit.blocks[0].qkv.weight.grad.isfinite().all()


def test_fused_attention_is_what_fails(vit, monkeypatch):
    """Else this file would test nothing."""
    monkeypatch.setattr(unfused, "ask", lambda: None)
    monkeypatch.setattr(unfused, "release", lambda: None)
    with pytest.raises(RuntimeError, match=r"derivative for .*attention.* is not implemented"):
        train_step(GradCAM(vit, "blocks.1.norm1", reshape=tokens_to_map(3, 4)), torch.randn(2, 3, 12, 16))


def test_the_users_choice_is_put_back_after_errors_too(vit):
    cam = GradCAM(vit, "blocks.1.norm1", reshape=tokens_to_map(3, 4))
    vit.fc.forward = lambda x: 1 / 0
    chosen = [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(chosen):
        with pytest.raises(ZeroDivisionError):
            cam(torch.randn(2, 3, 12, 16))
        assert set(_cur_sdpa_kernel_backends()) == set(chosen)


def test_stays_fused_without_a_double_backward(vit):
    cam = GradCAM(vit, "blocks.1.norm1", reshape=tokens_to_map(3, 4))
    with torch.no_grad():
        cam(torch.randn(2, 3, 12, 16))
    assert all(len(seen) > 1 for block in vit.blocks for seen in block.seen)


def test_two_who_ask_share_one_switch():
    usual = set(_cur_sdpa_kernel_backends())
    unfused.ask()
    other = threading.Thread(target=unfused.ask)
    other.start()
    other.join()
    unfused.release()
    assert set(_cur_sdpa_kernel_backends()) == {SDPBackend.MATH}
    unfused.release()
    assert set(_cur_sdpa_kernel_backends()) == usual


class Checkpointed(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=False)


def test_checkpointed_attention_behind_the_layer_needs_the_switch_around_the_step(vit):
    cam, x = GradCAM(vit, "blocks.0", reshape=tokens_to_map(3, 4)), torch.randn(2, 3, 12, 16)
    wanted = train_step(cam, x)
    vit.blocks[2] = Checkpointed(vit.blocks[2])
    with pytest.raises(CheckpointError):
        train_step(cam, x)
    with sdpa_kernel(SDPBackend.MATH):
        assert train_step(cam, x) == pytest.approx(wanted)


# Dynamo looks at every input of a graph, and hides the warning, but not from those that make it an error.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_step():
    """Of which what comes before the layer is compiled, and attention behind it is eager and plain."""
    usual, vit = set(_cur_sdpa_kernel_backends()), TinyViT(depth=3)
    vit.blocks[2] = Block()
    cam, x = GradCAM(vit, "blocks.1", reshape=tokens_to_map(3, 4)), torch.randn(2, 3, 12, 16)
    wanted = train_step(cam, x)
    gradient = vit.blocks[0].qkv.weight.grad
    vit.zero_grad()
    vit.blocks[2].seen.clear()
    assert train_step(torch.compile(cam, backend="eager"), x) == pytest.approx(wanted)
    torch.testing.assert_close(vit.blocks[0].qkv.weight.grad, gradient)
    assert vit.blocks[2].seen == [{SDPBackend.MATH}] * 2
    assert set(_cur_sdpa_kernel_backends()) == usual


def test_threads_that_share_a_gradcam(vit):
    usual = set(_cur_sdpa_kernel_backends())
    cam, x = GradCAM(vit, "blocks.1.norm1", reshape=tokens_to_map(3, 4)), torch.randn(2, 3, 12, 16)
    wanted = train_step(cam, x)
    got = []
    threads = [threading.Thread(target=lambda: got.append(train_step(cam, x))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [pytest.approx(wanted)] * 4
    assert set(_cur_sdpa_kernel_backends()) == usual
