"""record: the matrix it finds is that by which the image was moved, to a thousandth of a pixel."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import default_collate
from torchvision import transforms as v1
from torchvision import tv_tensors
from torchvision.transforms import v2

from cgc_kernels import CAM, CropFlip, cgc_loss, homography, record
from cgc_kernels.backends.reference.resample import transform_maps

SIZE = HEIGHT, WIDTH = 60, 80
BILINEAR = v2.InterpolationMode.BILINEAR
PIPELINES = {
    "nothing": v2.Identity(),
    "flip": v2.RandomHorizontalFlip(1),
    "vertical flip": v2.RandomVerticalFlip(1),
    "crop": v2.RandomResizedCrop(SIZE),
    "padded crop": v2.RandomCrop(SIZE, padding=9),
    "resize": v2.Compose([v2.Resize((91, 97)), v2.CenterCrop((50, 60)), v2.Resize(SIZE)]),
    "rotation": v2.RandomRotation(40, interpolation=BILINEAR),
    "rotation about a point": v2.RandomRotation(40, interpolation=BILINEAR, center=(10, 20)),
    "affine": v2.RandomAffine(30, (0.1, 0.2), (0.7, 1.3), (-10, 10, -10, 10), interpolation=BILINEAR),
    "affine about a point": v2.RandomAffine(30, None, (0.7, 1.3), interpolation=BILINEAR, center=(3, 50)),
    "perspective": v2.RandomPerspective(0.5, 1, interpolation=BILINEAR),
    "crop, flip": v2.Compose([v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip(1)]),
    "flip, crop, rotation": v2.Compose(
        [v2.RandomHorizontalFlip(1), v2.RandomResizedCrop(SIZE), v2.RandomRotation(20, interpolation=BILINEAR)]
    ),
    "all": v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, scale=(0.4, 1)),
            v2.RandomApply([v2.RandomVerticalFlip(1)]),
            v2.RandomAffine(10, scale=(0.8, 1.2), shear=5, interpolation=BILINEAR),
            v2.RandomChoice([v2.RandomHorizontalFlip(), v2.RandomPerspective(0.2, 1, interpolation=BILINEAR)]),
        ]
    ),
}
COLOURS = {
    "jitter": v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
    "colours": v2.Compose([v2.RandomGrayscale(1), v2.GaussianBlur(5), v2.RandomInvert(1), v2.RandomPosterize(4)]),
    "normalised": v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.1] * 3)]),
    "noise": v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.GaussianNoise()]),
}


def coordinates():
    """An image whose values are the places of its pixels, float64 [2, H, W] as (x, y)."""
    y, x = torch.meshgrid(*(torch.arange(side).double() for side in SIZE), indexing="ij")
    return torch.stack((x, y))


def sources(matrix):
    """Where the pixels of an augmented view come from, [2, H, W]."""
    places = torch.cat((coordinates(), torch.ones(1, *SIZE, dtype=torch.float64))).flatten(1)
    x, y, depth = torch.linalg.inv(matrix) @ places
    return torch.stack((x / depth, y / depth)).reshape(2, *SIZE)


def inside(source, margin=4.0):
    """Pixels in the middle of the augmented view, away from what a crop clamps, that see the middle of the view."""
    x, y = coordinates()
    near = (x - (WIDTH - 1) / 2).square() + (y - (HEIGHT - 1) / 2).square() < (0.3 * HEIGHT) ** 2
    for place, side in zip(source, (WIDTH, HEIGHT), strict=True):
        near &= (place > margin) & (place < side - 1 - margin)
    assert near.sum() > 100
    return near


class Untyped(v2.Transform):
    def transform(self, inpt, params):
        return inpt.as_subclass(torch.Tensor)


class TestRecord:
    @pytest.mark.parametrize("name", PIPELINES)
    def test_image_is_where_the_matrix_says(self, name):
        torch.manual_seed(0)
        for _ in range(10):
            aug, matrix = record(PIPELINES[name])(tv_tensors.Image(coordinates().float()))
            assert (matrix.shape, matrix.dtype) == ((3, 3), torch.float64)
            source = sources(matrix)
            assert (aug.double() - source).abs().amax(0)[inside(source)].max() < 1e-3

    @pytest.mark.parametrize("name", PIPELINES)
    def test_pil_image_is_where_the_matrix_says(self, name):
        planes = [Image.fromarray(plane.float().numpy()) for plane in coordinates()]
        for seed in range(3):
            drawn = []
            for plane in planes:
                torch.manual_seed(seed)
                drawn.append(record(PIPELINES[name])(plane))
            (x, matrix), (y, again) = drawn
            assert torch.equal(matrix, again)
            aug, source = torch.from_numpy(np.stack([x, y])).double(), sources(matrix)
            assert (aug - source).abs().amax(0)[inside(source)].max() < 1e-3

    @pytest.mark.parametrize("name", PIPELINES)
    def test_draws_are_those_of_the_pipeline_alone(self, name):
        torch.manual_seed(1)
        plain = PIPELINES[name](coordinates())
        after = torch.rand(())
        torch.manual_seed(1)
        aug, _ = record(PIPELINES[name])(coordinates())
        assert torch.equal(aug, plain)
        assert torch.equal(torch.rand(()), after)

    def test_types_may_end_with_the_pipeline(self):
        aug, matrix = record(v2.Compose([v2.RandomHorizontalFlip(1), v2.ToPureTensor()]))(
            tv_tensors.Image(coordinates())
        )
        assert type(aug) is torch.Tensor
        assert matrix[0].tolist() == pytest.approx([-1, 0, WIDTH - 1])

    @pytest.mark.parametrize("name", COLOURS)
    @pytest.mark.parametrize("kind", [torch.Tensor, tv_tensors.Image])
    def test_colours_do_not_matter(self, name, kind):
        view = torch.randint(256, (3, *SIZE), dtype=torch.uint8).as_subclass(kind)
        aug, matrix = record(COLOURS[name])(view)
        assert not torch.equal(aug, view)
        torch.testing.assert_close(matrix, torch.eye(3).double(), rtol=0, atol=1e-9)
        moved = v2.Compose([v2.RandomVerticalFlip(1), COLOURS[name], v2.RandomHorizontalFlip(1)])
        expected = torch.tensor([[-1, 0, WIDTH - 1], [0, -1, HEIGHT - 1], [0, 0, 1]]).double()
        torch.testing.assert_close(record(moved)(view)[1], expected, rtol=0, atol=1e-9)

    def test_crop_is_that_of_crop_flip(self):
        torch.manual_seed(2)
        pipeline = v2.Compose([v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip(1)])
        view = coordinates()
        _, matrix = record(pipeline)(view)
        torch.manual_seed(2)
        crop = CropFlip.from_torchvision(pipeline.transforms[0].make_params([view]), flip=True)
        torch.testing.assert_close(matrix, crop.matrix(SIZE), rtol=1e-6, atol=1e-4)

    def test_loss_moves_heatmaps_as_the_view_was(self):
        """The reference backend's warp of a smooth image is the augmented image."""
        torch.manual_seed(0)
        x, y = coordinates()
        view = (torch.sin(x / 9) + torch.cos(y / 7))[None]
        aug, matrix = record(PIPELINES["all"])(view)
        warped = transform_maps(view, torch.linalg.inv(matrix)[None])
        near = inside(sources(matrix), margin=6)
        assert (warped - aug)[0][near].abs().max() < 0.02  # three interpolations against one
        assert (view - aug)[0][near].abs().max() > 0.3

    def test_collated_matrices_go_into_the_loss(self):
        made = record(PIPELINES["all"])
        pairs = [pickle.loads(pickle.dumps(made))(torch.rand(3, *SIZE)) for _ in range(4)]
        aug, matrix = default_collate(pairs)
        assert (aug.shape, matrix.shape) == ((4, 3, *SIZE), (4, 3, 3))
        cam = CAM(torch.rand(4, 5, 6, 8), torch.rand(4, 5), SIZE)
        assert cgc_loss(cam, cam, matrix).isfinite()

    def test_views_that_move_together_share_their_matrix(self):
        aug, matrix = record(v2.RandomHorizontalFlip(1))(torch.rand(4, 3, *SIZE))
        assert (aug.shape, matrix.shape) == ((4, 3, *SIZE), (4, 3, 3))
        assert (matrix == matrix[0]).all()

    @pytest.mark.parametrize(
        ("pipeline", "message"),
        [
            (v2.ElasticTransform(50.0), "must be projective .*, got points .* pixels from"),
            (v2.ElasticTransform(1.0), "must be projective"),
            (v2.Compose([v2.RandomHorizontalFlip(1), v2.ElasticTransform()]), "must be projective"),
            (v2.Compose([v2.SetClampingMode("hard"), v2.RandomResizedCrop(SIZE, scale=(0.1, 0.2))]), "projective"),
            (v2.RandomResizedCrop(30), r"as large as it was given, 60 x 80, got 30 x 30; .* v2.Resize\(\(60, 80\)\)"),
            (v2.SanitizeBoundingBoxes(labels_getter=None), "must keep all 9 points, got 0"),
            (Untyped(), "must return bounding boxes as such, got Tensor"),
        ],
    )
    def test_what_has_no_matrix_is_refused(self, pipeline, message):
        torch.manual_seed(0)
        with pytest.raises(ValueError, match=message):
            record(pipeline)(torch.rand(3, *SIZE))

    @pytest.mark.parametrize(
        ("pipeline", "error", "message"),
        [
            (
                v1.RandomRotation(10),
                TypeError,
                r"v2 transforms, .*, got torchvision\.transforms\.transforms\.RandomRot",
            ),
            (v2.Compose([v2.Identity(), v1.RandomVerticalFlip()]), TypeError, "got .*RandomVerticalFlip"),
            (nn.Sequential(v2.Identity()), TypeError, r"got torch\.nn\.modules\.container\.Sequential"),
            (lambda view: view, TypeError, "got builtins.function"),
            (
                v2.RandomRotation(30, expand=True),
                ValueError,
                r"got RandomRotation\(expand=True\), .*; leave expand out",
            ),
            (v2.Compose([v2.RandomApply([v2.RandomRotation(30, expand=True)])]), ValueError, "leave expand out"),
        ],
    )
    def test_what_cannot_be_followed_is_refused_at_once(self, pipeline, error, message):
        with pytest.raises(error, match=message):
            record(pipeline)


class TestHomography:
    def test_any_matrix_is_found(self):
        generator = torch.Generator().manual_seed(0)
        points = torch.rand(6, 2, generator=generator).double() * 200
        for _ in range(20):
            matrix = torch.eye(3).double() + 0.3 * torch.randn(3, 3, generator=generator).double()
            matrix[:2, 2] *= 100
            matrix[2, :2] = 1e-3 * torch.randn(2, generator=generator).double()
            matrix[2, 2] = 1
            moved = torch.cat((points, torch.ones(6, 1)), 1) @ matrix.T
            found = homography(points, moved[:, :2] / moved[:, 2:])
            torch.testing.assert_close(found / found[2, 2], matrix, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize(
        ("points", "moved", "message"),
        [
            (torch.rand(3, 2), torch.rand(3, 2), r"N at least 4, got \[3, 2\] and \[3, 2\]"),
            (torch.rand(5, 2), torch.rand(4, 2), r"got \[5, 2\] and \[4, 2\]"),
            (torch.rand(5, 2) * 99, torch.rand(5, 2) * 99, "must be projective"),
            (torch.rand(5, 2), torch.full((5, 2), float("nan")), "must be finite"),
        ],
    )
    def test_points_are_checked(self, points, moved, message):
        with pytest.raises(ValueError, match=message):
            homography(points, moved)
