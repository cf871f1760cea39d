import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from gmtool_training.data.batches import LabeledBatch, UnlabeledBatch
from gmtool_training.engine.average import averaged_copy
from gmtool_training.method import unlabeled as unlabeled_module
from gmtool_training.method.batchnorm import frozen_statistics
from gmtool_training.pictures import pairs as pairs_module
from gmtool_training.pictures.pairs import compute_target, draw_pairs
from gmtool_training.pictures.sheet import PALEST, MaskTile, draw_sheet
from gmtool_training.recipes.recipes import recipe
from PIL import Image
from torch import Tensor, nn

from gmtool.config import MethodConfig, ModelConfig
from gmtool.data.toy import CLASSES
from gmtool.nn.checkpoint import build_network
from gmtool.nn.model import normalize

METHODS = [
    MethodConfig(),
    MethodConfig(view="strong", pseudo="direct", teacher="average"),
    MethodConfig(pairing="random", decoupling="hard", batch_norm="joint"),
]


@pytest.fixture
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ModelConfig(encoder="toy", encoder_weights="none", decoder_channels=32)
        return build_network(model, CLASSES)


@pytest.fixture
def batch() -> tuple[LabeledBatch, Tensor]:
    random = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=random)
    masks = torch.randint(0, len(CLASSES), (3, 32, 32), dtype=torch.uint8, generator=random)
    masks[:, 0] = CLASSES.ignore_index
    return LabeledBatch(images[:3], masks), images[3:]


def draw(network: nn.Module, batch: tuple[LabeledBatch, Tensor], method: MethodConfig) -> bytes:
    labeled, images = batch
    average = averaged_copy(network) if method.teacher == "average" else None
    return draw_pairs(network, average, labeled, everywhere(images), method=method, classes=CLASSES, lam=0.25)


def everywhere(images: Tensor) -> UnlabeledBatch:
    return UnlabeledBatch(images, torch.ones(len(images), *images.shape[2:], dtype=torch.bool))


def method_of(name: str) -> MethodConfig:
    """The method of a recipe."""
    settings = {
        key.removeprefix("method."): value for key, value in recipe(name).items() if key.startswith("method.")
    }
    return MethodConfig(**settings)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prepare", [nn.Module.train, nn.Module.eval, lambda network: network.encoder.eval()])
def test_drawing_leaves_no_trace(
    network: nn.Module,
    batch: tuple[LabeledBatch, Tensor],
    method: MethodConfig,
    prepare: Callable[[nn.Module], None],
) -> None:
    prepare(network)
    modes = [module.training for module in network.modules()]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    assert draw(network, batch, method) == draw(network, batch, method)
    assert [module.training for module in network.modules()] == modes
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert str(np.random.get_state()) == str(numpy_state)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_pseudo_masks_are_those_of_the_step(network: nn.Module, batch: tuple[LabeledBatch, Tensor]) -> None:
    labeled, unlabeled = batch
    method = MethodConfig()
    target, prediction = compute_target(
        network.eval(), None, labeled, everywhere(unlabeled), method=method, lam=0.25
    )
    x_l, x_u = normalize(labeled.images), normalize(unlabeled)
    with torch.no_grad(), frozen_statistics(network.train()):
        out_l, out_u = network(x_l), network(x_u)
        distance = (out_u.embedding[:, None] - out_l.embedding[None]).norm(dim=2)
        partners = distance.argmin(dim=1)
        mixed = network(0.25 * x_l[partners] + 0.75 * x_u).logits.softmax(dim=1)
        known = out_l.logits.softmax(dim=1)
    assert target.source.partners is not None
    assert torch.equal(target.source.partners, partners)
    torch.testing.assert_close(target.pseudo, mixed - 0.25 * known[partners])
    torch.testing.assert_close(prediction, out_u.logits.softmax(dim=1))


def test_at_most_four_rows_of_six_tiles(network: nn.Module, batch: tuple[LabeledBatch, Tensor]) -> None:
    def size(count: int) -> tuple[int, int]:
        labeled, unlabeled = batch
        with Image.open(io.BytesIO(draw(network, (labeled, unlabeled[:count]), METHODS[0]))) as image:
            return image.size

    assert size(5) == size(4)
    assert size(3)[1] == size(4)[1] - 248
    assert size(4)[0] == 6 * 248 + 8


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("paper", ["labeled partner", "its mask", "unlabeled image", "mixed, λ = 0.25"]),
        ("fixmatch", ["unlabeled image", "strong view"]),
    ],
)
def test_the_picture_shows_what_the_recipe_computes(
    network: nn.Module,
    batch: tuple[LabeledBatch, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    columns: list[str],
) -> None:
    """No mixing where the recipe does none; its strong view and what counts where it has them."""
    shown: list[str] = []
    real = draw_sheet

    def draw_sheet_and_note(titles: tuple[str, ...], *arguments: object, **keywords: object) -> object:
        shown.extend(titles)
        return real(titles, *arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(pairs_module, "draw_sheet", draw_sheet_and_note)
    method = method_of(name)
    draw(network, batch, method)
    rest = {"paper": ["decoupled pseudo mask"]}.get(name, ["pseudo mask, pasted", "what counts"])
    assert shown == [*columns, *rest, "prediction"]


def test_the_pseudo_mask_of_a_mean_teacher_is_that_of_the_average(
    network: nn.Module, batch: tuple[LabeledBatch, Tensor]
) -> None:
    labeled, images = batch
    average = averaged_copy(network)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(1.5)
    method = MethodConfig(view="strong", pseudo="direct", teacher="average", cutmix=0.0)
    target, _ = compute_target(network, average, labeled, everywhere(images), method=method, lam=0.25)
    with torch.no_grad():
        expected = average(normalize(images)).logits.softmax(dim=1)
        own = network.train()(normalize(images)).logits.softmax(dim=1)
    torch.testing.assert_close(target.pseudo, expected)
    assert (target.pseudo - own).abs().max() > 0.01


def test_pixels_that_do_not_count_are_the_palest(
    network: nn.Module, batch: tuple[LabeledBatch, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a threshold that nothing reaches, no pixel of "what counts" keeps more than `PALEST` of its colour."""
    labeled, images = batch
    method = MethodConfig(view="strong", pseudo="direct", confidence=0.999)
    rows: list[list[object]] = []
    real = draw_sheet

    def keep(titles: tuple[str, ...], given: list[list[object]], **keywords: object) -> object:
        rows.extend(given)
        assert titles[-2] == "what counts"
        return real(titles, given, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(pairs_module, "draw_sheet", keep)
    draw(network, (labeled, images), method)
    for row in rows:
        tile = row[-2]
        assert isinstance(tile, MaskTile) and tile.certainty is not None
        assert (tile.certainty == 0).all()


def test_the_picture_and_the_step_call_the_same_functions() -> None:
    """A second copy of the method in the picture once drew mixing that a recipe does not do."""
    for name in ("predict_view", "pixel_weights"):
        assert getattr(pairs_module, name) is getattr(unlabeled_module, name)
    for name in (
        "weak_target",
        "strong_target",
        "decouple",
        "mix_pairs",
        "nearest_partners",
        "change_colors",
        "paste",
    ):
        assert not hasattr(pairs_module, name)


def test_a_sheet_shows_the_palette_the_legend_and_less_certain_pixels_paler() -> None:
    labels = np.full((4, 4), 3, dtype=np.uint8)
    labels[0] = CLASSES.ignore_index
    certain = MaskTile(labels, np.full((4, 4), 1, dtype=np.float32))
    unknown = MaskTile(labels, np.zeros((4, 4), dtype=np.float32))
    sheet = np.asarray(draw_sheet(("a", "b"), [[certain, unknown]], classes=CLASSES, note=""))
    color = np.array(CLASSES.palette[3])
    assert (sheet[150, 100] == color).all()
    assert (sheet[150, 350] == np.rint(255 + (color - 255.0) * PALEST)).all()
    legend = sheet[270 + 8 : 270 + 22]
    found = {tuple(pixel) for pixel in legend.reshape(-1, 3).tolist()}
    assert {CLASSES.palette[3], (224, 224, 192)} <= found
    assert CLASSES.palette[1] not in found
