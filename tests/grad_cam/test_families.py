"""GradCAM.auto: target layers and reshapes by family, from the model's structure alone."""

import random

import pytest
import torch
from torch import nn

from bench import families
from cgc_kernels import GradCAM
from cgc_kernels.grad_cam.families import find_target
from cgc_kernels.grad_cam.reshape import ToMap
from tests.grad_cam.cases import CLASSES, cam_loss, tiny
from tests.support.models import ResNet18, TinyViT

pytestmark = pytest.mark.usefixtures("single_thread")
timm = pytest.importorskip("timm", reason="timm is in the train extra")
torchvision = pytest.importorskip("torchvision", reason="torchvision is in the train extra")

MILLIONS = 6  # of parameters: the models of which a sample is tested in every run


def build_vit(**options):
    return timm.models.vision_transformer.VisionTransformer(
        **{"img_size": 32, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": CLASSES}
        | options
    )


def build_torchvision_vit():
    net = torchvision.models.VisionTransformer(32, 8, 2, 2, 8, 16, num_classes=CLASSES)
    nn.init.normal_(net.heads.head.weight)
    return net


def build_swin():
    return timm.models.swin_transformer.SwinTransformer(
        img_size=32, window_size=2, embed_dim=8, depths=(1, 1), num_heads=(1, 1), num_classes=CLASSES
    )


def build_cait():
    return timm.models.cait.Cait(img_size=32, patch_size=8, embed_dim=8, depth=2, num_heads=2, num_classes=CLASSES)


def build_mixer(size=32):
    net = timm.models.mlp_mixer.MlpMixer(img_size=size, patch_size=8, embed_dim=8, num_blocks=2, num_classes=CLASSES)
    nn.init.normal_(net.head.weight)
    return net


BUILD = {
    "resnet": lambda: ResNet18(width=4),
    "torchvision swin": lambda: torchvision.models.SwinTransformer(
        [4, 4], 8, [1, 1], [1, 1], [2, 2], num_classes=CLASSES
    ),
    "torchvision vit": build_torchvision_vit,
    "swin": build_swin,
    "vit": build_vit,
    "wide vit": lambda: build_vit(img_size=(16, 32)),
    "vit of registers": lambda: build_vit(reg_tokens=2),
    "averaged vit": lambda: build_vit(global_pool="avg"),
    "post-norm vit": lambda: build_vit(block_fn=timm.models.vision_transformer.ResPostBlock),
    "cait": build_cait,
    "mixer": build_mixer,
}


class TestFind:
    """Small networks of torchvision's and timm's own classes."""

    @pytest.mark.parametrize(
        ("build", "layer", "reshape"),
        [
            ("resnet", "layer4", ToMap()),
            ("torchvision swin", "permute", ToMap()),
            ("torchvision vit", "encoder.layers.encoder_layer_1.ln_1", ToMap(1, channels_last=True)),
            ("swin", "norm", ToMap(channels_last=True)),
            ("vit", "blocks.1.norm1", ToMap(1, channels_last=True)),
            ("wide vit", "blocks.1.norm1", ToMap(1, 1, 2, channels_last=True)),
            ("vit of registers", "blocks.1.norm1", ToMap(3, channels_last=True)),
            ("averaged vit", "blocks.1", ToMap(1)),
            ("post-norm vit", "blocks.0", ToMap(1)),
            ("cait", "blocks.1", ToMap()),
            ("mixer", "norm", ToMap(channels_last=True)),
        ],
    )
    def test_layer_and_reshape(self, build, layer, reshape):
        net, size = BUILD[build](), {"wide vit": (16, 32), "resnet": (64, 64)}.get(build, (32, 32))
        assert find_target(net) == (layer, reshape)
        cam = GradCAM.auto(net)
        assert cam.target_layer == layer
        outputs = cam(*(torch.randn(2, 3, *size) for _ in range(2)))
        assert all(out.cam.gradients.any() for out in outputs)
        cam_loss(outputs).backward()

    def test_layouts_with_a_closed_form(self):
        assert GradCAM.auto(build_swin()).closed_form
        assert GradCAM.auto(build_mixer()).closed_form

    def test_layouts_with_a_closed_form_compile_in_one_graph(self):
        cam, x = GradCAM.auto(build_mixer()), torch.randn(2, 3, 32, 32)
        (got,), (want,) = torch.compile(cam, backend="eager", fullgraph=True)(x), cam(x)
        torch.testing.assert_close(got.cam.gradients, want.cam.gradients)

    def test_no_reshape_where_the_closed_form_proves_the_layout(self):
        assert GradCAM.auto(ResNet18(width=4)).reshape is None
        assert GradCAM.auto(build_swin()).reshape == ToMap(channels_last=True)

    def test_options(self):
        assert not GradCAM.auto(tiny(), closed_form=False).closed_form
        with pytest.raises(RuntimeError, match="closed_form must not be True"):
            GradCAM.auto(build_vit(), closed_form=True)

    @pytest.mark.parametrize("net", [TinyViT().patches, nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())])
    def test_unknown_models_are_refused(self, net):
        with pytest.raises(
            ValueError, match=r"must know where a model's head begins, got .*; give GradCAM\(model, target"
        ):
            GradCAM.auto(net)

    def test_hugging_face_is_refused(self):
        class Base(nn.Module):
            base_model_prefix = "base"

            def __init__(self):
                super().__init__()
                self.base, self.classifier = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

        with pytest.raises(ValueError, match=r"must know where a model's head begins, got Base of base, classifier"):
            GradCAM.auto(Base())

    def test_modules_that_are_no_models(self):
        with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got int"):
            GradCAM.auto(3)
        with pytest.raises(TypeError, match="bare network, got DataParallel"):
            GradCAM.auto(nn.DataParallel(tiny()))


class TestToMap:
    def test_places(self):
        tokens = torch.arange(2 * 19 * 5).reshape(2, 19, 5)
        got = ToMap(1, 1, 2)(tokens)
        assert got.shape == (2, 5, 3, 6)
        assert torch.equal(got[1, :, 2, 1], tokens[1, 1 + 2 * 6 + 1])
        maps = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
        assert torch.equal(ToMap(channels_last=True)(maps)[1, :, 2, 1], maps[1, 2, 1])
        assert ToMap(1)(maps) is maps

    def test_tokens_that_fill_no_map(self):
        with pytest.raises(ValueError, match=r"must fill a map of 1 : 2, got 19 after a prefix of 0; give GradCAM\("):
            ToMap(0, 1, 2)(torch.rand(2, 19, 5))

    def test_views_of_another_aspect(self):
        """Sixteen tokens of 2 x 8 would pass as a map of 4 x 4."""
        net = build_mixer((16, 64))
        with pytest.raises(ValueError, match=r"views must have the aspect .*, got 16 x 64 for maps of 4 x 4"):
            GradCAM.auto(net)(torch.randn(2, 3, 16, 64))


def assert_as_in_the_table(family):
    row = TABLE[family]
    given = families.example(f"{family.partition('/')[0]}/{row.model}")
    cam, shape = families.check(given)
    if family not in families.GLOBAL:
        families.check_places(given)
    assert (str(given.size), cam.target_layer, shape) == (row.size, row.layer, row.shape)
    assert ("closed form" if cam.closed_form else "autograd") == row.path


TABLE = {row.family: row for row in families.read_table()}
CHEAP = [family for family, row in TABLE.items() if float(row.millions) < MILLIONS]


@pytest.mark.parametrize("family", random.Random(0).sample(CHEAP, 16))
def test_a_step_of_a_family(family):
    assert_as_in_the_table(family)


@pytest.mark.slow
@pytest.mark.parametrize("family", TABLE)
def test_a_step_of_every_family(family):
    assert_as_in_the_table(family)


@pytest.mark.slow
def test_the_table_has_every_family_and_its_cheapest_model():
    found = families.families()
    assert list(TABLE) == list(found)
    for family, names in found.items():
        assert families.cheapest(names).partition("/")[2] == TABLE[family].model
