"""What must hold on a CUDA device; skipped where there is none."""

import fcntl

import pytest
import torch

from cgc_kernels import CropFlip, RandomCropFlip, backends, cgc_loss, gradcam, heatmap_loss, info
from cgc_kernels.options import OBJECTIVES
from tests.operators import test_ops
from tests.support.compare import assert_close, assert_low_precision, assert_same_bits
from tests.support.waiting import never_waiting

# The compilers of PyTorch itself warn about what they deprecate.
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
]


def served(name: str):
    """A backend as a parameter, skipped with its own reason where it is missing."""
    found = info()["backends"][name]
    return pytest.param(name, marks=pytest.mark.skipif(not found["available"], reason=found["reason"]))


FUSED = [served(name) for name in ("cuda", "triton")]
BACKENDS = [*FUSED, served("torch")]

BATCH, CHANNELS, HEIGHT, WIDTH, SIZE = 5, 12, 7, 9, (40, 33)


def inputs(dtype: torch.dtype, memory_format: torch.memory_format, batch: int = BATCH) -> list[torch.Tensor]:
    """Features and gradients of both views, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(batch, CHANNELS, HEIGHT, WIDTH, generator=generator) + 0.2 for _ in range(4)]
    return [t.to(dtype).contiguous(memory_format=memory_format) for t in draw]


def crops(batch: int = BATCH) -> CropFlip:
    """Crops of every kind, in turn: whole, one pixel, thin, at the border; flipped or not."""
    top, left = torch.tensor([0, 3, 39, 0, 10]), torch.tensor([0, 32, 0, 1, 5])
    height, width = torch.tensor([40, 1, 1, 40, 20]), torch.tensor([33, 1, 33, 1, 17])
    fields = (top, left, height, width, torch.tensor([False, True, False, True, True]))
    return CropFlip(*(field.repeat(-(-batch // BATCH))[:batch] for field in fields))


def on(device: str, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Leaves on `device`."""
    return [t.detach().to(device).requires_grad_() for t in tensors]


def loss_and_gradients(tensors: list[torch.Tensor], transform, **options) -> list[torch.Tensor]:
    """The loss and its gradients, on the CPU."""
    features, gradients, aug_features, aug_gradients = tensors
    loss = cgc_loss((features, gradients), (aug_features, aug_gradients), transform, image_size=SIZE, **options)
    return [value.cpu() for value in (loss.detach(), *torch.autograd.grad(loss, tensors))]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("weighting", ["gradcam", "elementwise"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("warped", [False, True], ids=["crop", "homography"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gpu_gives_what_the_cpu_gives(backend, objective, weighting, memory_format, warped):
    tensors = inputs(torch.float64, memory_format)
    transform = crops().matrix(SIZE) if warped else crops()
    options = {"objective": objective, "weighting": weighting, "consistency": 2.0}
    expected = loss_and_gradients(on("cpu", tensors), transform, backend="torch", **options)
    actual = loss_and_gradients(on("cuda", tensors), transform.to("cuda"), backend=backend, **options)
    for got, wanted in zip(actual, expected, strict=True):
        assert_close(got, wanted, tol=1e-10, floor=1.0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("weighting", ["gradcam", "elementwise"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_dtype_comes_back_as_it_went_in(backend, dtype, weighting, memory_format):
    tensors, options = inputs(dtype, memory_format), {"weighting": weighting, "consistency": 1.0}
    loss, *grads = loss_and_gradients(on("cuda", tensors), crops().to("cuda"), backend=backend, **options)
    assert loss.dtype == torch.float32
    assert [g.dtype for g in grads] == [dtype] * 4
    peer = loss_and_gradients(on("cpu", tensors), crops(), backend="torch", **options)
    exact = loss_and_gradients(on("cpu", [t.double() for t in tensors]), crops(), backend="torch", **options)
    for got, other, truth in zip((loss, *grads), peer, exact, strict=True):
        assert_low_precision(got, other, truth, ulps=2 if got.dtype.itemsize == 2 else 50)


# Small: `make gpu` runs these under compute-sanitizer as well.
@pytest.mark.sanitizer
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("backend", FUSED)
def test_the_sanitizer_sees_every_kernel(backend, memory_format, dtype, objective):
    tensors = on("cuda", inputs(dtype, memory_format))
    for transform in (crops(), crops().matrix(SIZE)):
        for weighting in ("gradcam", "elementwise"):
            options = {"objective": objective, "weighting": weighting, "consistency": 1.0, "backend": backend}
            loss, *_ = loss_and_gradients(tensors, transform.to("cuda"), **options)
            assert loss.isfinite()
    maps = gradcam(*tensors[:2], backend=backend)
    heatmap_loss(maps, maps.flip(0), crops().to("cuda"), image_size=SIZE, backend=backend).backward()
    assert tensors[0].grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_side_stream_is_respected(backend):
    tensors = on("cuda", inputs(torch.float32, torch.contiguous_format))
    transform = crops().to("cuda")
    expected = loss_and_gradients(tensors, transform, backend=backend)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    torch.cuda._sleep(200_000_000)  # what is launched on the default stream comes too late
    with torch.cuda.stream(stream):
        actual = loss_and_gradients(tensors, transform, backend=backend)
    for got, wanted in zip(actual, expected, strict=True):
        assert_close(got, wanted, tol=0.0, floor=1.0)


@pytest.mark.parametrize("backend", FUSED)
def test_reruns_are_equal_to_the_last_bit(backend):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(33, 700, 7, 7, generator=generator).to("cuda", torch.bfloat16) for _ in range(4)]
    tensors = on("cuda", tensors)
    transform = CropFlip.identity(33, 40).to("cuda")

    def run():
        loss = cgc_loss(tensors[:2], tensors[2:], transform, image_size=40, backend=backend)
        return loss.detach(), *torch.autograd.grad(loss, tensors)

    expected = run()
    for _ in range(250):
        for got, wanted in zip(run(), expected, strict=True):
            assert_same_bits(got, wanted)


TRANSFORMS = {
    "crop": crops,
    "homography": lambda batch: crops(batch).matrix(SIZE),
    "affine": lambda batch: crops(batch).matrix(SIZE)[:, :2],
}


@pytest.mark.parametrize("batch", [BATCH, 130])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("weighting", ["gradcam", "elementwise"])
@pytest.mark.parametrize("backend", FUSED)
def test_a_graph_is_captured_and_replayed(backend, weighting, transform, batch):
    """Nothing waits for the device; every replay reads what its inputs hold then, and leaves nothing for the next."""
    tensors = on("cuda", inputs(torch.float32, torch.contiguous_format, batch))
    transform = TRANSFORMS[transform](batch).to("cuda")

    def run():
        loss = cgc_loss(
            tensors[:2], tensors[2:], transform, image_size=SIZE, weighting=weighting, consistency=1.0, backend=backend
        )
        return loss.detach(), *torch.autograd.grad(loss, tensors)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for shift in (1, 2):
        with torch.no_grad():
            for tensor in tensors:
                tensor.copy_(tensor.roll(shift, 0))
        expected = run()
        graph.replay()
        for got, wanted in zip(captured, expected, strict=True):
            assert_same_bits(got, wanted)


@pytest.mark.parametrize("backend", FUSED)
def test_compiled_in_one_graph(backend):
    tensors = on("cuda", inputs(torch.float32, torch.channels_last))
    transform = crops().to("cuda")

    def loss(*views):
        return cgc_loss(views[:2], views[2:], transform, image_size=SIZE, consistency=1.0, backend=backend)

    compiled = torch.compile(loss, fullgraph=True)(*tensors)
    expected = loss(*tensors)
    assert_same_bits(compiled, expected)
    pairs = zip(torch.autograd.grad(compiled, tensors), torch.autograd.grad(expected, tensors), strict=True)
    for got, wanted in pairs:
        assert_same_bits(got, wanted)


CHECKS = [
    *((test_ops.check_cam, given) for given in test_ops.CAMS),
    *((test_ops.check_resample, given) for given in test_ops.RESAMPLES),
    *((test_ops.check_contrast, given) for given in test_ops.CONTRASTS),
    *((test_ops.check_cgc, given) for given in test_ops.CGCS),
]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(("check", "given"), CHECKS)
@pytest.mark.parametrize("backend", FUSED)
def test_opcheck(backend, check, given):
    namespace = getattr(torch.ops, {"cuda": "cgc_kernels", "triton": "cgc_kernels_triton"}[backend])
    check(lambda name: getattr(namespace, name).default, given, device="cuda")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_device_that_is_not_the_current_one(backend):
    tensors = inputs(torch.float32, torch.contiguous_format)
    expected = loss_and_gradients(on("cuda:0", tensors), crops().to("cuda:0"), backend=backend)
    with torch.cuda.device(0):
        actual = loss_and_gradients(on("cuda:1", tensors), crops().to("cuda:1"), backend=backend)
        assert torch.cuda.current_device() == 0
    for got, wanted in zip(actual, expected, strict=True):
        assert_close(got, wanted, tol=1e-6, floor=1.0)


@pytest.fixture
def room(tmp_path_factory):
    """Workers of one run take turns: side by side, tests that need much memory would not find it."""
    with open(tmp_path_factory.getbasetemp().parent / "room_on_the_device", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        torch.cuda.empty_cache()


@pytest.mark.usefixtures("room")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("backend", FUSED)
def test_more_than_two_to_the_31_elements(backend, memory_format):
    """Offsets do not wrap: the last samples of a tensor of 2^31 elements and more have heatmaps and gradients."""
    batch, channels, side = 2**31 // (4096 * 49) + 3, 4096, 7
    needed = 3 * batch * channels * side * side * 2
    if torch.cuda.mem_get_info()[0] < 1.2 * needed:
        pytest.skip(f"needs {1.2 * needed / 2**30:.0f} GiB of free device memory")
    features = torch.zeros(batch, channels, side, side, dtype=torch.bfloat16, device="cuda")
    features = features.to(memory_format=memory_format).requires_grad_()
    gradients = torch.zeros(batch, channels, dtype=torch.bfloat16, device="cuda")
    with torch.no_grad():
        features[-2:, 1], gradients[-2:, 1] = 2.0, 3.0
    maps = gradcam(features, gradients, backend=backend)
    assert (maps[-2:] == 6).all()
    assert (maps[:-2] == 0).all()
    (grad,) = torch.autograd.grad(maps.sum(), features)
    assert (grad[-2:, 1] == 3).all()
    assert not grad[:, 0].any()


@pytest.mark.parametrize("backend", [served("cuda")])
def test_maps_that_the_cuda_kernels_do_not_take_are_refused_by_name(backend):
    x = torch.rand(2, 3, 33, 8, device="cuda")
    with pytest.raises(RuntimeError, match="use backend='torch'"):
        gradcam(x, x, backend=backend)
    with pytest.raises(RuntimeError, match="use backend='torch'"):
        torch.ops.cgc_kernels.cam(x, x, True)
    assert gradcam(x, x).isfinite().all()


def test_stages_run_on_a_gpu():
    features, gradients, *_ = on("cuda", inputs(torch.float32, torch.contiguous_format))
    heatmaps = gradcam(features, gradients)
    loss = heatmap_loss(heatmaps, heatmaps.flip(0), crops().to("cuda"), image_size=SIZE)
    loss.backward()
    assert features.grad.isfinite().all()


def test_views_are_cropped_without_waiting_for_the_gpu():
    torch.manual_seed(0)
    make, views = RandomCropFlip(SIZE, scale=(0.05, 1.0)), torch.rand(16, 3, *SIZE, device="cuda")
    make(views)
    with never_waiting():
        aug, crop = make(views)
    assert {field.device.type for field in crop} == {aug.device.type} == {"cuda"}
    crop.check(SIZE)
    torch.testing.assert_close(aug.cpu(), crop.to("cpu").apply(views.cpu()), rtol=0, atol=1e-4)


def test_transform_on_another_device_is_refused():
    features, gradients, aug_features, aug_gradients = on("cuda", inputs(torch.float32, torch.contiguous_format))
    with pytest.raises(RuntimeError, match=r"transform\.top must be on cuda:0 .* got cpu"):
        cgc_loss((features, gradients), (aug_features, aug_gradients), crops(), image_size=SIZE)


def test_cpp_is_refused_and_auto_is_served():
    device = torch.device("cuda")
    with pytest.raises(RuntimeError, match="needs CPU tensors"):
        backends.choose("cpp", device)
    first = next(name for name in ("cuda", "triton", "torch") if info()["backends"][name]["available"])
    assert backends.choose("auto", device) is backends.choose(first, device)
