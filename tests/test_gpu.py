"""What must hold on a CUDA device; skipped where there is none."""

import pytest
import torch
from compare import assert_close

from cgc_kernels import CropFlip, backends, cgc_loss, gradcam, heatmap_loss

pytestmark = pytest.mark.gpu

BATCH, CHANNELS, HEIGHT, WIDTH, SIZE = 5, 12, 7, 9, (40, 33)


def inputs(dtype: torch.dtype, memory_format: torch.memory_format) -> list[torch.Tensor]:
    """Features and gradients of both views, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(BATCH, CHANNELS, HEIGHT, WIDTH, generator=generator) + 0.2 for _ in range(4)]
    return [t.to(dtype).contiguous(memory_format=memory_format) for t in draw]


def crops() -> CropFlip:
    """Crops of every kind: whole, one pixel, thin, at the border; flipped or not."""
    top, left = torch.tensor([0, 3, 39, 0, 10]), torch.tensor([0, 32, 0, 1, 5])
    height, width = torch.tensor([40, 1, 1, 40, 20]), torch.tensor([33, 1, 33, 1, 17])
    return CropFlip(top, left, height, width, torch.tensor([False, True, False, True, True]))


def on(device: str, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Leaves on `device`."""
    return [t.detach().to(device).requires_grad_() for t in tensors]


def loss_and_gradients(tensors: list[torch.Tensor], transform, **options) -> list[torch.Tensor]:
    """The loss and its gradients, on the CPU."""
    features, gradients, aug_features, aug_gradients = tensors
    loss = cgc_loss((features, gradients), (aug_features, aug_gradients), transform, image_size=SIZE, **options)
    return [value.cpu() for value in (loss, *torch.autograd.grad(loss, tensors))]


@pytest.mark.parametrize("objective", ["released", "paper", "mse"])
@pytest.mark.parametrize("weighting", ["gradcam", "elementwise"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("warped", [False, True])
def test_a_gpu_gives_what_the_cpu_gives(objective, weighting, memory_format, warped):
    tensors = inputs(torch.float64, memory_format)
    transform = crops().matrix(SIZE) if warped else crops()
    options = {"objective": objective, "weighting": weighting, "consistency": 2.0}
    expected = loss_and_gradients(on("cpu", tensors), transform, backend="torch", **options)
    actual = loss_and_gradients(on("cuda", tensors), transform.to("cuda"), **options)
    for got, wanted in zip(actual, expected, strict=True):
        assert_close(got, wanted, tol=1e-10, floor=1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_comes_back_as_it_went_in(dtype):
    tensors = on("cuda", inputs(dtype, torch.channels_last))
    loss, *grads = loss_and_gradients(tensors, crops().to("cuda"))
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert [g.dtype for g in grads] == [dtype] * 4


def test_a_side_stream_is_respected():
    tensors = on("cuda", inputs(torch.float32, torch.contiguous_format))
    expected = loss_and_gradients(tensors, crops().to("cuda"))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        actual = loss_and_gradients(tensors, crops().to("cuda"))
    for got, wanted in zip(actual, expected, strict=True):
        assert_close(got, wanted, tol=0.0, floor=1.0)


def test_stages_run_on_a_gpu():
    features, gradients, *_ = on("cuda", inputs(torch.float32, torch.contiguous_format))
    heatmaps = gradcam(features, gradients)
    loss = heatmap_loss(heatmaps, heatmaps.flip(0), crops().to("cuda"), image_size=SIZE)
    loss.backward()
    assert features.grad.isfinite().all()


def test_transform_on_another_device_is_refused():
    features, gradients, aug_features, aug_gradients = on("cuda", inputs(torch.float32, torch.contiguous_format))
    with pytest.raises(RuntimeError, match=r"transform\.top must be on cuda:0 .* got cpu"):
        cgc_loss((features, gradients), (aug_features, aug_gradients), crops(), image_size=SIZE)


def test_cpp_is_refused_and_auto_is_served():
    device = torch.device("cuda")
    with pytest.raises(RuntimeError, match="needs CPU tensors"):
        backends.choose("cpp", device)
    assert backends.choose("auto", device).__name__.endswith("backends.torch")
