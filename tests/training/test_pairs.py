import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from gmtool_training.batchnorm import frozen_statistics
from gmtool_training.data import LabeledBatch
from gmtool_training.pairs import compute_pairs, draw_pairs
from gmtool_training.sheet import PALEST, MaskTile, draw_sheet
from PIL import Image
from torch import Tensor, nn

from gmtool.config import MethodConfig, ModelConfig
from gmtool.nn.checkpoint import build_network
from gmtool.nn.model import normalize
from gmtool.toy import CLASSES

METHODS = [MethodConfig(), MethodConfig(pairing="random", decoupling="hard", batch_norm="joint")]


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
    return draw_pairs(network, *batch, method=method, classes=CLASSES, lam=0.25)


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


@pytest.mark.parametrize("count", [1, 2])
def test_pseudo_masks_are_those_of_the_step(
    network: nn.Module, batch: tuple[LabeledBatch, Tensor], count: int
) -> None:
    labeled, unlabeled = batch
    pairs = compute_pairs(network.eval(), labeled, unlabeled, method=MethodConfig(partners=count), lam=0.25)
    x_l, x_u = normalize(labeled.images), normalize(unlabeled)
    with torch.no_grad(), frozen_statistics(network.train()):
        out_l, out_u = network(x_l), network(x_u)
        distance = (out_u.embedding[:, None] - out_l.embedding[None]).norm(dim=2)
        partners = distance.argsort(dim=1)[:, :count]
        minor = torch.stack([x_l[row].mean(dim=0) for row in partners])
        mixed = network(0.25 * minor + 0.75 * x_u).logits.softmax(dim=1)
        known = out_l.logits.softmax(dim=1)
    assert torch.equal(pairs.partners, partners)
    subtracted = sum(known[partners[:, place]] for place in range(count)) / count
    torch.testing.assert_close(pairs.decoupled, mixed - 0.25 * subtracted)
    torch.testing.assert_close(pairs.direct, out_u.logits.softmax(dim=1))


def test_at_most_four_rows_of_six_tiles(network: nn.Module, batch: tuple[LabeledBatch, Tensor]) -> None:
    def size(count: int) -> tuple[int, int]:
        labeled, unlabeled = batch
        with Image.open(io.BytesIO(draw(network, (labeled, unlabeled[:count]), METHODS[0]))) as image:
            return image.size

    assert size(5) == size(4)
    assert size(3)[1] == size(4)[1] - 248
    assert size(4)[0] == 6 * 248 + 8


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
