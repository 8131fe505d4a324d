"""Heatmaps over images, and in TensorBoard."""

import sys

import matplotlib
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from cgc_kernels import GradCAM, gradcam, log_heatmaps, overlay
from cgc_kernels.pictures import _palette
from tests.grad_cam.cases import tiny
from tests.support.models import TinyNet


class TestOverlay:
    def test_the_image_is_kept_where_nothing_is_hot(self):
        image, heat = torch.rand(3, 8, 8), torch.zeros(8, 8)
        cold = overlay(image, heat)
        assert cold.shape == (3, 8, 8)
        assert (cold[0] == cold[2]).all()  # grey
        heat[2, 3] = 5
        changed = (overlay(image, heat) - cold).abs().amax(0) > 1e-6
        assert changed.nonzero().tolist() == [[2, 3]]

    def test_colours_are_those_of_matplotlib(self):
        heat = torch.linspace(0, 1, 48).reshape(6, 8)
        colours = torch.from_numpy(matplotlib.colormaps["inferno"](heat.numpy())[..., :3]).float().movedim(-1, 0)
        opacity = 0.85 * heat.sqrt()
        torch.testing.assert_close(overlay(torch.zeros(3, 6, 8), 7 * heat), opacity * colours)

    def test_a_batch_is_its_images_one_by_one(self):
        images, heatmaps = torch.randint(256, (4, 3, 20, 30), dtype=torch.uint8), torch.rand(4, 3, 5)
        heatmaps[2] = 0
        pictures = overlay(images, heatmaps)
        assert (pictures.shape, pictures.dtype) == ((4, 3, 20, 30), torch.float32)
        assert 0 <= pictures.min() <= pictures.max() <= 1
        for picture, image, heat in zip(pictures, images, heatmaps, strict=True):
            torch.testing.assert_close(picture, overlay(image / 255, heat))

    def test_autocast_changes_nothing(self):
        image, heat = torch.rand(2, 3, 8, 8), torch.rand(2, 2, 2)
        with torch.autocast("cpu", torch.bfloat16):
            picture = overlay(image, heat)
        assert torch.equal(picture, overlay(image, heat))

    def test_the_hottest_place_is_where_the_heatmap_is(self):
        heat = torch.zeros(4, 4, requires_grad=True) + torch.eye(4)[1].outer(torch.eye(4)[2])
        picture = overlay(torch.zeros(3, 32, 32, dtype=torch.float64), heat)
        assert not picture.requires_grad
        row, column = divmod(int(picture.sum(0).argmax()), 32)
        assert (row // 8, column // 8) == (1, 2)

    @pytest.mark.parametrize(
        ("images", "heatmaps", "error", "message"),
        [
            (torch.rand(1, 8, 8), torch.rand(2, 2), ValueError, r"images must be .*, got \[1, 8, 8\]"),
            (torch.rand(3, 8, 8), torch.rand(1, 2, 2), ValueError, r"heatmaps must be \[H, W\] .*, got \[1, 2, 2\]"),
            (torch.rand(4, 3, 8, 8), torch.rand(3, 2, 2), ValueError, r"heatmaps must be \[4, H, W\] .*, got \[3, 2"),
            (torch.rand(3, 8, 8) * 2 - 1, torch.rand(2, 2), ValueError, r"in \[0, 1\], got .*: images \* std \+ mean"),
            (torch.full((3, 8, 8), torch.nan), torch.rand(2, 2), ValueError, r"images must be in \[0, 1\]"),
            (torch.ones(3, 8, 8, dtype=torch.int64), torch.rand(2, 2), TypeError, "point or uint8, got torch.int64"),
            (torch.rand(3, 8, 8), -torch.rand(2, 2), ValueError, "heatmaps must be finite and >= 0, got -"),
            (torch.rand(3, 8, 8), torch.full((2, 2), torch.nan), ValueError, "heatmaps must be finite"),
        ],
    )
    def test_arguments_are_checked(self, images, heatmaps, error, message):
        with pytest.raises(error, match=message):
            overlay(images, heatmaps)

    def test_without_matplotlib_the_remedy_is_named(self, monkeypatch):
        _palette.cache_clear()
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(ImportError, match="pip install matplotlib"):
            overlay(torch.rand(3, 8, 8), torch.rand(2, 2))


class Writer:
    """Keeps what a SummaryWriter is given."""

    def add_images(self, tag, images, step):
        self.tag, self.images, self.step = tag, images, step


class TestLogHeatmaps:
    @pytest.mark.parametrize("closed_form", [True, False])
    def test_pictures_are_of_the_views_as_they_were(self, closed_form):
        mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
        images = torch.rand(3, 3, 8, 8)
        views = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        net = TinyNet().eval()
        cam, writer, target = GradCAM(net, "body", closed_form=closed_form), Writer(), torch.tensor([0, 1, 2])
        log_heatmaps(writer, cam, views, 7, mean=mean, std=std, target=target, tag="looks")
        (out,) = cam(views, target=target)
        torch.testing.assert_close(writer.images, overlay(images, gradcam(out.cam)), rtol=0, atol=1e-4)
        assert (writer.tag, writer.step) == ("looks", 7)
        log_heatmaps(writer, cam, views, 8, mean=mean, std=std)
        (out,) = cam(views)
        torch.testing.assert_close(writer.images, overlay(images, gradcam(out.cam)), rtol=0, atol=1e-4)

    def test_a_mean_that_is_no_three_numbers(self):
        with pytest.raises(ValueError, match=r"mean must hold three numbers, got float 0\.5"):
            log_heatmaps(Writer(), GradCAM(tiny().float(), "body"), torch.rand(3, 3, 8, 8), 0, mean=0.5)

    def test_nothing_of_the_model_changes(self):
        net = tiny().float().train()
        net.body[0].eval()  # one that is kept in evaluation mode
        modes, state = [m.training for m in net.modules()], {k: v.clone() for k, v in net.state_dict().items()}
        cam = GradCAM(net, "body")
        log_heatmaps(Writer(), cam, torch.rand(3, 3, 8, 8), 0)
        assert [m.training for m in net.modules()] == modes
        assert cam.training
        assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
        assert all(parameter.grad is None for parameter in net.parameters())
        with pytest.raises(ValueError, match="undo their normalisation"):
            log_heatmaps(Writer(), cam, torch.rand(3, 3, 8, 8) - 1, 0)
        assert [m.training for m in net.modules()] == modes

    def test_tensorboard_shows_them(self, tmp_path):
        cam = GradCAM(TinyNet(), "body")
        with SummaryWriter(tmp_path) as writer:
            for epoch in range(2):
                log_heatmaps(writer, cam, torch.rand(3, 3, 8, 8), epoch)
        events = EventAccumulator(str(tmp_path)).Reload()
        assert events.Tags()["images"] == ["heatmaps"]
        assert [(image.step, image.height) for image in events.Images("heatmaps")] == [(0, 8), (1, 8)]
