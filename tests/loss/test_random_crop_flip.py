"""RandomCropFlip: what it does to a view, and that it says so truthfully."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2

from cgc_kernels.transforms import CropFlip, RandomCropFlip
from tests.loss.cases import expected_aug

pytestmark = pytest.mark.usefixtures("single_thread")


class TestRandomCropFlip:
    @pytest.mark.parametrize("size", [16, (12, 20)])
    def test_record_reproduces_the_augmented_view(self, size):
        torch.manual_seed(0)
        make = RandomCropFlip(size, scale=(0.05, 1.0))
        view = torch.rand(3, *make.size, dtype=torch.float64)
        flips = set()
        for _ in range(30):
            aug, crop = make(view)
            CropFlip(*(field[None] for field in crop)).check(size)
            torch.testing.assert_close(aug, expected_aug(view, crop), rtol=0, atol=1e-12)
            flips.add(bool(crop.flip))
        assert flips == {True, False}

    @pytest.mark.parametrize("size", [16, (12, 20), 1, (1, 9)])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.uint8])
    def test_each_view_of_a_batch_has_a_crop_of_its_own(self, size, dtype):
        torch.manual_seed(0)
        make = RandomCropFlip(size, scale=(0.05, 1.0))
        views = (torch.rand(30, 3, *make.size, dtype=torch.float64) * 255).to(dtype)
        aug, crop = make(views)
        crop.check(size)
        assert (aug.dtype, aug.shape) == (dtype, views.shape)
        assert [field.dtype for field in crop] == [torch.int64] * 4 + [torch.bool]
        tolerance = {torch.float64: 1e-9, torch.float32: 1e-2, torch.bfloat16: 2.0, torch.uint8: 0.51}[dtype]
        for index, view in enumerate(views):
            want = expected_aug(view, [field[index] for field in crop])
            assert (aug[index].double() - want).abs().max() <= tolerance
        if make.size[0] > 1:
            assert len({tuple(row) for row in crop.rows().tolist()}) > 25

    def test_a_batch_is_made_where_it_is(self):
        aug, crop = RandomCropFlip(8)(torch.empty(4, 3, 8, 8, device="meta"))
        assert (aug.device.type, aug.shape) == ("meta", (4, 3, 8, 8))
        assert {field.device.type for field in crop} == {"meta"}

    def test_crops_of_a_batch_are_differentiable(self):
        views = torch.rand(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
        aug, _ = RandomCropFlip(8)(views)
        assert torch.autograd.grad(aug.sum(), views)[0].abs().sum() > 0

    @pytest.mark.parametrize("shape", [(3, 8, 8), (2, 3, 8, 8)])
    def test_type_of_the_view_is_kept(self, shape):
        """v2.Normalize passed over an augmented view that had become a plain tensor."""
        image = tv_tensors.Image(torch.randint(256, shape, dtype=torch.uint8))
        aug, _ = RandomCropFlip(8)(image)
        assert type(aug) is tv_tensors.Image
        assert aug.dtype == torch.uint8
        normalised = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.1] * 3)])
        pair = normalised({"view": image, "aug": aug})
        assert min(pair["aug"].min(), pair["view"].min()) < -1

    def test_a_batch_draws_from_the_same_distribution(self):
        torch.manual_seed(2)
        make = RandomCropFlip((30, 40), scale=(0.2, 0.5), ratio=(0.5, 2.0), p=0.25)
        one = default_collate([make(torch.empty(1, 30, 40))[1] for _ in range(1500)]).rows().double()
        many = make(torch.empty(1500, 1, 30, 40))[1].rows().double()
        spread = one.std(0) / 1500**0.5
        assert ((one.mean(0) - many.mean(0)).abs() < 5 * spread).all()
        assert (one.std(0) / many.std(0) - 1).abs().max() < 0.1

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
    def test_dtype_is_kept(self, dtype):
        view = (torch.rand(3, 16, 16) * 255).to(dtype)
        aug, crop = RandomCropFlip(16)(view)
        assert (aug.dtype, aug.shape) == (dtype, view.shape)
        tolerance = {torch.float32: 1e-3, torch.bfloat16: 2.0, torch.uint8: 0.5 + 1e-4}[dtype]
        assert (aug.double() - expected_aug(view, crop)).abs().max() <= tolerance
        assert [field.dtype for field in crop] == [torch.int64] * 4 + [torch.bool]
        assert [field.ndim for field in crop] == [0] * 5

    def test_whole_view_without_flip_is_the_view(self):
        view = torch.rand(3, 9, 9)
        aug, crop = RandomCropFlip(9, scale=(1, 1), ratio=(1, 1), p=0)(view)
        assert torch.equal(aug, view)
        assert [int(field) for field in crop] == [0, 0, 9, 9, 0]

    @pytest.mark.parametrize("mode", ["RGB", "L", "F"])
    def test_pil_image(self, mode):
        torch.manual_seed(1)
        pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).convert(mode)
        view = torch.from_numpy(np.array(image)).reshape(12, 20, -1).movedim(-1, 0)
        for _ in range(20):
            aug, crop = RandomCropFlip((12, 20))(image)
            assert (aug.mode, aug.size) == (mode, (20, 12))
            got = torch.from_numpy(np.array(aug)).reshape(12, 20, -1).movedim(-1, 0).double()
            # Fixed-point weights and two roundings, one per direction.
            assert (got - expected_aug(view, crop)).abs().max() < (1e-3 if mode == "F" else 1.01)

    def test_distribution_of_the_crops(self):
        torch.manual_seed(2)
        make = RandomCropFlip(200, scale=(0.2, 0.5), ratio=(0.5, 2.0), p=0.25)
        drawn = [make(torch.empty(1, 200, 200))[1] for _ in range(1500)]
        top, left, height, width, flip = default_collate(drawn)
        area, ratio = (height * width) / 200**2, (width / height).log()
        assert area.min() > 0.195
        assert area.max() < 0.505
        assert area.mean() == pytest.approx(0.35, abs=0.01)
        assert area.double().std() == pytest.approx(0.3 / 12**0.5, abs=0.005)
        assert ratio.abs().max() < np.log(2.0) + 0.03
        assert ratio.mean() == pytest.approx(0, abs=0.04)
        assert ratio.std() == pytest.approx(2 * np.log(2.0) / 12**0.5, abs=0.02)
        assert flip.double().mean() == pytest.approx(0.25, abs=0.04)
        for start, room in ((top, 200 - height), (left, 200 - width)):
            place = start / room
            assert (place.min(), place.max()) == (0, 1)
            assert place.mean() == pytest.approx(0.5, abs=0.03)
            assert place.std() == pytest.approx(12**-0.5, abs=0.02)

    @pytest.mark.parametrize(
        ("size", "ratio", "box"),
        [
            ((10, 100), (1, 2), (0, 40, 10, 20)),
            ((100, 10), (1, 2), (45, 0, 10, 10)),
            ((100, 10), (0.5, 2), (40, 0, 20, 10)),
            ((1, 100), (100, 100), (0, 0, 1, 100)),
        ],
    )
    def test_fallback_is_the_largest_centred_crop(self, size, ratio, box):
        crop = RandomCropFlip(size, scale=(1, 1), ratio=ratio)(torch.empty(1, *size))[1]
        assert tuple(int(field) for field in crop[:4]) == box

    def test_numbers_of_ones_own_and_views_of_several_sizes(self):
        """A call is `from_uniform` of numbers that torch draws; a size of its own gives the same as an object of it."""
        sizes = torch.tensor([[30, 200], [64, 64], [200, 30], [1, 9], [9, 1], [10, 100]])
        area, ratio = torch.rand(2, len(sizes), RandomCropFlip.tries, dtype=torch.float64).unbind()
        area[-1] = 1  # no box of the whole area fits: the fallback
        numbers = area, ratio, *torch.rand(3, len(sizes), dtype=torch.float64)
        together = RandomCropFlip(8, scale=(0.1, 1)).from_uniform(*numbers, sizes.unbind(1)).rows()
        for index, size in enumerate(sizes.tolist()):
            alone = RandomCropFlip(size, scale=(0.1, 1)).from_uniform(*(own[index] for own in numbers))
            assert torch.equal(alone.rows(), together[index])
            CropFlip.from_rows(together[index : index + 1]).check(size)
        torch.manual_seed(5)
        _, crop = RandomCropFlip(64)(torch.empty(3, 64, 64))
        torch.manual_seed(5)
        numbers = *(torch.rand(10, dtype=torch.float64) for _ in range(2)), *torch.rand(2, dtype=torch.float64)
        assert torch.equal(RandomCropFlip(64).from_uniform(*numbers, torch.rand(())).rows(), crop.rows())

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"area": torch.rand(2)}, ValueError, r"area must have shape \[2, 2\], got \[2\]"),
            ({"area": torch.tensor(0.5)}, ValueError, r"area must have shape \[2, 10\], got \[\]"),
            ({"ratio": torch.rand(2, 9)}, ValueError, r"ratio must have shape \[2, 10\], got \[2, 9\]"),
            ({"across": torch.rand(3)}, ValueError, r"across must have shape \[2\], got \[3\]"),
            ({"flip": torch.ones(2, dtype=torch.bool)}, TypeError, "flip must be floating point, got torch.bool"),
        ],
    )
    def test_numbers_of_ones_own_are_checked(self, change, error, message):
        shapes = {"area": (2, 10), "ratio": (2, 10), "down": (2,), "across": (2,), "flip": (2,)}
        with pytest.raises(error, match=message):
            RandomCropFlip(8).from_uniform(**({name: torch.rand(shape) for name, shape in shapes.items()} | change))

    def test_torch_seed_alone_decides(self):
        make, view = RandomCropFlip(16), torch.rand(3, 16, 16)
        torch.manual_seed(3)
        first = [make(view) for _ in range(3)]
        torch.manual_seed(3)
        np.random.seed(4)
        again = [pickle.loads(pickle.dumps(make))(view) for _ in range(3)]
        for (aug, crop), (aug2, crop2) in zip(first, again, strict=True):
            assert torch.equal(aug, aug2)
            assert [int(a) for a in crop] == [int(b) for b in crop2]
        assert len({tuple(int(field) for field in crop) for _, crop in first}) == 3

    def test_dataloader_stacks_records(self):
        loader = DataLoader(_Views(), batch_size=3)
        view, (aug, crop) = next(iter(loader))
        assert isinstance(crop, CropFlip)
        crop.check(8)
        assert [tuple(field.shape) for field in crop] == [(3,)] * 5
        for i in range(3):
            want = expected_aug(view[i], [field[i] for field in crop])
            torch.testing.assert_close(aug[i].double(), want, rtol=0, atol=1e-6)

    @pytest.mark.parametrize(
        ("keywords", "error", "message"),
        [
            ({"size": 0}, ValueError, "size must be at least 1"),
            ({"size": 2.5}, TypeError, "size must be an int"),
            ({"scale": (0, 1)}, ValueError, "scale must be"),
            ({"scale": (0.5, 0.2)}, ValueError, "scale must be"),
            ({"scale": (0.5, 1.5)}, ValueError, r"scale must be .*, got \(0.5, 1.5\)"),
            ({"scale": (0.5,)}, ValueError, "scale must be"),
            ({"ratio": (0, 1)}, ValueError, "ratio must be"),
            ({"ratio": (2, 1)}, ValueError, "ratio must be"),
            ({"p": 1.5}, ValueError, "p must be in"),
            ({"p": float("nan")}, ValueError, "p must be in"),
        ],
    )
    def test_arguments_are_checked(self, keywords, error, message):
        with pytest.raises(error, match=message):
            RandomCropFlip(**({"size": 8} | keywords))

    @pytest.mark.parametrize(
        ("view", "error", "message"),
        [
            (torch.rand(3, 8, 9), ValueError, "view must be 8 x 8 .* got 8 x 9"),
            (Image.new("RGB", (9, 8)), ValueError, "view must be 8 x 8 .* got 8 x 9"),
            (torch.rand(8, 8), ValueError, r"view must have shape \[C, H, W\] or \[B, C, H, W\], got \[8, 8\]"),
            (torch.rand(2, 2, 3, 8, 8), ValueError, r"view must have shape .*, got \[2, 2, 3, 8, 8\]"),
            (torch.ones(3, 8, 8, dtype=torch.int64), TypeError, "floating point or uint8, got torch.int64"),
            (np.zeros((3, 8, 8)), TypeError, "PIL image or a tensor .* got ndarray"),
        ],
    )
    def test_view_is_checked(self, view, error, message):
        with pytest.raises(error, match=message):
            RandomCropFlip(8)(view)

    def test_repr_tells_the_parameters(self):
        assert repr(RandomCropFlip(8, p=0.0)) == (
            "RandomCropFlip(size=(8, 8), scale=(0.2, 1.0), ratio=(0.75, 1.3333333333333333), p=0.0)"
        )


class _Views(Dataset):
    def __init__(self):
        self.make = RandomCropFlip(8)

    def __len__(self):
        return 3

    def __getitem__(self, index):
        view = torch.rand(3, 8, 8)
        return view, self.make(view)
