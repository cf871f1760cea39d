"""The probe: features of sampled pixels, its classifiers, self-training, and a run of it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.optimize
import torch
from gmtool_export.run import ExportOptions, export_run
from gmtool_training.loop.run import resume, train
from gmtool_training.probe.bank import Bank, View, any_pixels, features_at, labeled_pixels, views_of
from gmtool_training.probe.collect import _until, affordable_views, class_pixel_weights, unlabeled_bank
from gmtool_training.probe.head import (
    Head,
    HiddenOptions,
    Rows,
    Scaling,
    fit_hidden,
    fit_linear,
    for_even_pixels,
    head_of,
    install,
)
from gmtool_training.probe.self_training import (
    PseudoOptions,
    Reliability,
    choose_threshold,
    folds_of,
    labeled_rows,
    mean_iou,
    pixel_confusion,
    pseudo_rows,
    reliability,
    self_train,
    shares_of_rounds,
)
from torch import nn
from torchmetrics import JaccardIndex

from gmtool.artifact.describe import describe
from gmtool.config import ModelConfig
from gmtool.errors import ConfigError
from gmtool.nn.checkpoint import load_network
from gmtool.nn.model import GuidedMixNet, normalize
from gmtool.nn.pyramid_decoder import PyramidDecoder
from gmtool.settings import Settings, build_config

NUM_CLASSES = 3
CHANGES: Settings = {
    "method.name": "probe",
    "model.decoder": "pyramid",
    "model.decoder_channels": 32,
    "model.output_stride": 16,
    "probe.steps": 30,
    "probe.rounds": 1,
    "probe.labeled_pixels": 50,
    "probe.unlabeled_pixels": 30,
}


@pytest.fixture(scope="module")
def network() -> GuidedMixNet:
    torch.manual_seed(0)
    model = ModelConfig(encoder="toy", decoder="pyramid", decoder_channels=8, output_stride=16)
    return GuidedMixNet(model, num_classes=NUM_CLASSES, num_foreground=2).eval()


def blobs(count: int, *, seed: int, spread: float = 1.0, known: bool = True) -> Bank:
    """Pixels of three classes whose features lie around three points, in two views."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(NUM_CLASSES, (count,), generator=random)
    middle = torch.eye(NUM_CLASSES, 5)[labels] * 3
    views = tuple((middle + spread * torch.randn(count, 5, generator=random)).half() for _ in range(2))
    shown = labels if known else torch.full_like(labels, 255)
    return Bank(views, shown, torch.arange(count) // 10)


def test_a_networks_scores_at_a_pixel_are_those_of_the_head(network: GuidedMixNet) -> None:
    """In the middle of a cell of the scores, where nothing is interpolated but the levels."""
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    rows = torch.tensor([12, 28, 44])  # the middle of cells of stride 8 lies half a pixel on
    columns = torch.tensor([20, 36, 60])
    around = [
        features_at(network, image, View(1.0, False), rows - down, columns - right)
        for down in (0, 1)
        for right in (0, 1)
    ]
    features = torch.stack(around).float().mean(dim=0)
    torch.manual_seed(1)
    layers = nn.Sequential(
        nn.Linear(features.shape[1], 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, NUM_CLASSES)
    ).eval()
    random = torch.Generator().manual_seed(2)
    mean, std = (torch.rand(features.shape[1], generator=random) + low for low in (-0.5, 0.5))
    scaling = Scaling(mean, std)
    head = Head(scaling, layers)
    decoder = network.decoder
    assert isinstance(decoder, PyramidDecoder)
    install(head, decoder)
    with torch.no_grad():
        x = normalize(torch.from_numpy(image).permute(2, 0, 1)[None])
        scores = decoder(network.encoder(x)).scores[0][:, rows // 8, columns // 8].T
        expected = head.layers(head.scaling(features))
    torch.testing.assert_close(scores, expected, rtol=1e-2, atol=1e-2)


def test_the_head_of_a_decoder_is_the_one_that_was_installed(network: GuidedMixNet) -> None:
    decoder = network.decoder
    assert isinstance(decoder, PyramidDecoder)
    random = torch.Generator().manual_seed(0)
    width = sum(each.num_features for each in decoder.norms if isinstance(each, nn.BatchNorm2d))
    features = torch.randn(20, width, generator=random).half()
    rows = Rows((features,), torch.eye(NUM_CLASSES)[torch.arange(20) % NUM_CLASSES])
    head = fit_hidden([rows], options=HiddenOptions(channels=8, steps=5), random=np.random.default_rng(0))
    install(head, decoder)
    torch.testing.assert_close(head_of(decoder).probabilities([features]), head.probabilities([features]))


def test_a_mirrored_view_shows_the_same_pixels(network: GuidedMixNet) -> None:
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    rows, columns = torch.tensor([3, 40]), torch.tensor([5, 50])
    mirrored = features_at(network, np.ascontiguousarray(image[:, ::-1]), View(1.0, False), rows, 63 - columns)
    torch.testing.assert_close(features_at(network, image, View(1.0, True), rows, columns), mirrored)


def test_features_in_bfloat16_are_those_in_float32_but_for_rounding(network: GuidedMixNet) -> None:
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    rows, columns = torch.arange(0, 64, 5), torch.arange(0, 64, 5)
    exact = features_at(network, image, View(1.0, False), rows, columns).float()
    rounded = features_at(network, image, View(1.0, False), rows, columns, bf16=True).float()
    assert 0 < (rounded - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_the_view_that_the_network_predicts_from_comes_first() -> None:
    assert views_of((0.7, 1.0, 1.4))[:2] == (View(1.0, False), View(1.0, True))
    assert len(views_of((0.7, 1.0, 1.4))) == 6


def test_views_are_left_out_where_there_is_no_time_for_them(
    network: GuidedMixNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    samples = SimpleNamespace(labeled=SimpleNamespace(samples=[None] * 10))
    read = SimpleNamespace(labeled=lambda index: (image, None))
    every = views_of((0.5, 1.0, 2.0))
    clock = iter([0.0, 1.0] * 3)  # a second an image
    monkeypatch.setattr("gmtool_training.probe.collect.time.monotonic", lambda: next(clock))
    taken = [affordable_views(network, samples, read, every, seconds) for seconds in (1.0, 25.0, 1e9)]  # type: ignore[arg-type]
    assert [[view.scale for view in views] for views in taken] == [
        [1.0, 1.0],
        [1.0, 1.0, 0.5, 0.5],
        [1.0, 1.0, 0.5, 0.5, 2.0, 2.0],
    ]


def test_smaller_views_of_unlabeled_images_take_less_of_the_time(network: GuidedMixNet) -> None:
    """All six take 6 s an image; the first four, without the large ones, not four sixths of it but 1.43 s."""
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    samples = [SimpleNamespace(id=str(index)) for index in range(2)]
    read = SimpleNamespace(unlabeled=lambda index: image, labeled=lambda index: (image, None))
    views = sorted(views_of((0.5, 1.0, 2.0)), key=lambda view: (view.scale != 1.0, view.scale))
    changes: Settings = {**CHANGES, "model.encoder": "toy", "data.root": "x"}
    config = build_config(changes)
    taken = [
        unlabeled_bank(
            network,
            SimpleNamespace(unlabeled=SimpleNamespace(samples=samples)),  # type: ignore[arg-type]
            read,  # type: ignore[arg-type]
            views,
            config=config,
            seconds=2 * seconds,
            seconds_a_view=1.0,
            random=np.random.default_rng(0),
        )
        for seconds in (0.6, 1.4, 1.5, 5.9, 6.1)
    ]
    assert [len(bank.features) for bank in taken] == [2, 3, 4, 5, 6]
    assert [len(torch.unique(bank.images)) for bank in taken] == [1, 2, 2, 2, 2]


def test_unlabeled_images_are_taken_until_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("gmtool_training.probe.collect.time.monotonic", lambda: next(clock))
    assert list(_until([5, 3, 9, 1], 1.5)) == [5, 3, 9]
    assert list(_until([5, 3, 9, 1], -1.0)) == [5]


def test_pixels_are_drawn_by_the_weights_of_their_classes() -> None:
    mask = np.full((100, 100), 255, dtype=np.uint8)
    mask[:10], mask[10:20, :10] = 0, 1  # ten times as many pixels of class 0
    weights = class_pixel_weights(torch.tensor([1000, 100, 0]), balance=1.0)
    mean = float(weights.numpy()[mask].sum())
    drawn = labeled_pixels(mask, weights, 2000, mean_weight=mean, random=np.random.default_rng(0))
    assert len(drawn.labels) == 2000
    assert torch.equal(torch.from_numpy(mask)[drawn.rows, drawn.columns].long(), drawn.labels)
    assert drawn.labels.bincount().tolist() == pytest.approx([1000, 1000], abs=120)


def test_an_image_without_a_label_gives_no_pixel() -> None:
    mask = np.full((8, 8), 255, dtype=np.uint8)
    weights = class_pixel_weights(torch.tensor([5, 5]), balance=0.5)
    assert len(labeled_pixels(mask, weights, 10, mean_weight=1.0, random=np.random.default_rng(0)).labels) == 0
    assert len(any_pixels((8, 9), 7, ignore_index=255, random=np.random.default_rng(0)).labels) == 7


def test_the_linear_head_is_the_minimum_that_scipy_finds() -> None:
    bank = blobs(60, seed=0, spread=2.0)
    rows = labeled_rows(Bank(bank.features[:1], bank.labels, bank.images), NUM_CLASSES)
    head = fit_linear([rows], l2=0.1, iterations=200)
    z, targets = head.scaling(bank.features[0]).double().numpy(), rows.targets.double().numpy()

    def loss(flat: np.ndarray) -> float:
        weight, bias = flat[:15].reshape(3, 5), flat[15:]
        logits = z @ weight.T + bias
        log_probabilities = logits - scipy.special.logsumexp(logits, axis=1, keepdims=True)
        return float(-(targets * log_probabilities).sum() / targets.sum() + 0.05 * (weight**2).sum())

    found = scipy.optimize.minimize(loss, np.zeros(18)).x
    state = head.layers.state_dict()
    ours = np.concatenate([state["0.weight"].double().numpy().ravel(), state["0.bias"].double().numpy()])
    assert loss(ours) == pytest.approx(loss(found), rel=1e-5)
    np.testing.assert_allclose(ours[:15], found[:15], atol=5e-3)


def test_a_linear_head_of_too_many_rows_is_fitted_to_every_nth() -> None:
    bank = blobs(90, seed=0, spread=2.0)
    every_third = Bank(tuple(view[::3] for view in bank.features), bank.labels[::3], bank.images[::3])
    start = fit_linear([labeled_rows(bank, NUM_CLASSES)])  # its scaling is of all rows
    thinned = fit_linear([labeled_rows(bank, NUM_CLASSES)], start=start, most=60)  # of 180
    alone = fit_linear([labeled_rows(every_third, NUM_CLASSES)], start=start)
    for one, other in zip(thinned.layers.parameters(), alone.layers.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_rows_without_a_target_do_not_count() -> None:
    bank = blobs(60, seed=0)
    rows = labeled_rows(bank, NUM_CLASSES)
    wrong = Rows(tuple(-view for view in bank.features), torch.zeros_like(rows.targets))
    for fit in (
        fit_linear,
        lambda given: fit_hidden(
            given, options=HiddenOptions(channels=8, steps=20, batch=16), random=np.random.default_rng(0)
        ),
    ):
        alone, both = fit([rows]), fit([rows, wrong])
        for one, other in zip(alone.layers.parameters(), both.layers.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_the_surest_of_each_class_count_however_unsure_they_are_and_rare_classes_weigh_more() -> None:
    first = torch.tensor([0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.93, 0.92, 0.4, 0.42, 0.44, 0.46])
    probabilities = torch.stack([first, 1 - first], dim=1)
    bank = Bank((torch.zeros(12, 4),), torch.full((12,), 255), torch.zeros(12))
    rows = pseudo_rows(bank, probabilities, PseudoOptions(2, None, balance=0.5, weight=0.5), share=0.5)
    kept = [[True, False]] * 4 + [[False, False]] * 4 + [[False, True]] * 2 + [[False, False]] * 2
    assert rows.targets.gt(0).tolist() == kept
    assert float(rows.targets[8, 1] / rows.targets[0, 0]) == pytest.approx(2**0.5)
    every = pseudo_rows(bank, probabilities, PseudoOptions(2, None, balance=0.5, weight=0.5), share=1.0)
    assert every.targets.gt(0).sum(dim=1).tolist() == [1] * 12


def test_with_a_threshold_pixels_below_it_do_not_count() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.45, 0.55]])
    bank = Bank((torch.zeros(4, 4),), torch.full((4,), 255), torch.zeros(4))
    rows = pseudo_rows(bank, probabilities, PseudoOptions(2, 0.6, balance=0.5, weight=0.5), share=0.1)
    assert rows.targets.gt(0).tolist() == [[True, False]] * 2 + [[False, True], [False, False]]


def test_a_teacher_gives_rare_classes_no_more_than_they_are() -> None:
    """A head of pixels of which one class was drawn nine times as often gives the probabilities of even ones."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(2000) % 2
    features = (labels + torch.randn(2000, generator=random))[:, None].half()
    weighted = torch.eye(2)[labels] * torch.tensor([1.0, 9.0])
    even = fit_linear([Rows((features,), torch.eye(2)[labels])], l2=0.0)
    head = fit_linear([Rows((features,), weighted)], l2=0.0)
    found = for_even_pixels(head, torch.tensor([1.0, 9.0])).probabilities([features])
    torch.testing.assert_close(found, even.probabilities([features]), atol=0.02, rtol=0)
    assert (head.probabilities([features]) - found).abs().max() > 0.3
    assert for_even_pixels(head, None) is head


def test_more_pixels_count_in_each_round() -> None:
    assert shares_of_rounds(4) == (0.2, 0.4, 0.6, 0.8)
    assert shares_of_rounds(1) == (0.5,)
    assert shares_of_rounds(0) == ()


def test_an_image_is_not_labeled_by_a_head_that_was_fitted_to_its_pseudo_labels() -> None:
    """But for the first round, which labels alone teach, and the last head, which is fitted to all."""
    bank = blobs(200, seed=0)
    unlabeled = blobs(200, seed=1, known=False)
    fitted: list[tuple[list[int], Head]] = []

    def fit(rows: Sequence[Rows], start: Head | None) -> Head:
        head = fit_linear(rows)
        seen = unlabeled.images[rows[1].targets.sum(dim=1) > 0] if len(rows) > 1 else torch.tensor([])
        fitted.append((sorted(set(seen.tolist())), head))
        return head

    trained = self_train(fit, bank, unlabeled, PseudoOptions(NUM_CLASSES, None, 0.5, 0.5), rounds=3)
    assert [len(seen) for seen, _ in fitted] == [0, 10, 10, 10, 10, 20]
    for (seen, head), (others, _) in zip(fitted[3:5], reversed(fitted[3:5]), strict=True):
        assert not set(seen) & set(others)
        mine = torch.isin(unlabeled.images, torch.tensor(others))
        expected = head.probabilities([view[mine] for view in unlabeled.features])
        torch.testing.assert_close(trained.found[mine], expected)
    assert trained.heads == [fitted[0][1], fitted[1][1], fitted[3][1], fitted[5][1]]


def test_the_pseudo_labels_of_another_run_stay_so_they_are_learned_once() -> None:
    bank, unlabeled = blobs(60, seed=0), blobs(60, seed=1, known=False)
    teacher = torch.full((60, NUM_CLASSES), 0.01)
    teacher[:, 2] = 0.98
    taught = replace(unlabeled, teacher=teacher)
    options = PseudoOptions(NUM_CLASSES, None, 0.5, 0.5)
    trained = self_train(lambda rows, start: fit_linear(rows), bank, taught, options, rounds=3)
    assert len(trained.heads) == 2 and trained.found is teacher


def test_self_training_moves_the_border_into_the_gap_between_clusters() -> None:
    """A few labeled pixels at the inner edges of two clusters; unlabeled ones show where the clusters end."""
    random = torch.Generator().manual_seed(0)
    many = torch.cat([torch.randn(400, 1, generator=random) - 2.0, torch.randn(400, 1, generator=random) + 4.0])
    truth = torch.arange(800) // 400
    labeled = Bank(
        (torch.tensor([[-4.5], [-4.0], [2.5], [2.6]]).half(),), torch.tensor([0, 0, 1, 1]), torch.arange(4)
    )
    unlabeled = Bank((many.half(),), torch.full((800,), 255), torch.arange(800))
    test = Bank((many.half(),), truth, torch.arange(800))
    heads = self_train(
        lambda rows, start: fit_linear(rows, start=start),
        labeled,
        unlabeled,
        PseudoOptions(2, None, balance=0.0, weight=0.9),
        rounds=3,
    ).heads
    scores = [mean_iou(pixel_confusion(head, test, 2)) for head in heads]
    assert len(heads) == 4
    assert scores[-1] > scores[0]


def test_each_image_is_kept_out_once_and_whole() -> None:
    bank = blobs(200, seed=3)
    folds = folds_of(bank, 3, np.random.default_rng(0))
    for kept_out in folds:
        assert not set(bank.images[kept_out].tolist()) & set(bank.images[~kept_out].tolist())
    assert sorted(image for each in folds for image in set(bank.images[each].tolist())) == list(range(20))


def test_reliability_counts_what_is_kept_and_what_is_right() -> None:
    confidence = torch.tensor([0.5, 0.65, 0.85, 0.99])
    measured = reliability(confidence, torch.tensor([True, False, True, True]))
    assert measured.thresholds == (0.6, 0.7, 0.8, 0.9, 0.95)
    assert measured.kept == (0.75, 0.5, 0.5, 0.25, 0.25)
    assert measured.right == pytest.approx((2 / 3, 1, 1, 1, 1))


def test_the_scores_are_those_of_torchmetrics() -> None:
    bank = blobs(200, seed=3, spread=3.0)
    head = fit_linear([labeled_rows(bank, NUM_CLASSES)])
    predicted = head.probabilities(bank.features[:1]).argmax(dim=1)
    reference = JaccardIndex(task="multiclass", num_classes=NUM_CLASSES)(predicted, bank.labels)
    assert mean_iou(pixel_confusion(head, bank, NUM_CLASSES)) == pytest.approx(float(reference))


def test_pixels_that_were_drawn_by_weight_count_by_its_inverse() -> None:
    bank = blobs(300, seed=3, spread=3.0)
    head = fit_linear([labeled_rows(bank, NUM_CLASSES)])
    often = torch.cat([torch.arange(300), *[(bank.labels == 1).nonzero()[:, 0]] * 3])
    drawn = replace(bank.rows(often), drawn=torch.tensor([0.5, 2.0, 0.5]))
    expected = 2.0 * pixel_confusion(head, bank, NUM_CLASSES)
    torch.testing.assert_close(pixel_confusion(head, drawn, NUM_CLASSES), expected.to(torch.float32))


def test_the_threshold_is_the_lowest_above_which_most_pseudo_labels_are_right() -> None:
    thresholds = (0.6, 0.7, 0.8)
    assert choose_threshold(Reliability(thresholds, (0.9, 0.8, 0.7), (0.8, 0.91, 0.95))) == 0.7
    assert choose_threshold(Reliability(thresholds, (0.9, 0.8, 0.0), (0.5, 0.6, float("nan")))) == 0.8


def test_a_run_of_the_probe_exports_and_is_a_run_like_any_other(
    toy_settings: Settings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = build_config(toy_settings, CHANGES, {"probe.input_scales": (0.5, 1.0)})
    result = train(config, tmp_path / "run")
    err = capfd.readouterr().err
    for line in (
        "input scale",
        "classifier: ",
        "unlabeled images ",
        "hidden layer: ",
        "linear: ",
        "features of 8 labeled images, 6 views",
    ):
        assert line in err
    assert result.report.miou > 0
    network, checkpoint = load_network(tmp_path / "run", "best")
    assert checkpoint.miou == pytest.approx(result.report.miou)
    exported = export_run(tmp_path / "run", options=ExportOptions(allow_few_classes=True))
    assert min(row.agreement for row in exported.parity) >= 0.999
    assert network.input_scale == checkpoint.model.input_scale
    spec = exported.records[0].spec
    assert (spec.decoder, spec.input_scale) == ("pyramid", checkpoint.model.input_scale)
    assert spec.encoder_license is None  # random weights are nobody's
    shown = describe(exported.paths[0]).facts
    assert shown["decoder"] == f"pyramid, input scale {spec.input_scale:g}"
    assert shown["network"].endswith("attention none")
    assert describe(tmp_path / "run").facts["weights from"] == "none"
    with pytest.raises(ConfigError, match="is finished: its method is the probe"):
        resume(tmp_path / "run")


def test_the_same_seed_gives_the_same_probe(toy_settings: Settings, tmp_path: Path) -> None:
    states = []
    for name in ("first", "second"):
        train(build_config(toy_settings, CHANGES), tmp_path / name)
        states.append(load_network(tmp_path / name, "last")[0].state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_an_interrupted_probe_starts_anew(
    toy_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = build_config(toy_settings, CHANGES, {"probe.head": "hidden"})
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(
            "gmtool_training.loop.probe.fit_probe", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run")
    resume(tmp_path / "run")
    whole, run = (load_network(tmp_path / name, "last")[0].state_dict() for name in ("whole", "run"))
    assert whole.keys() == run.keys()


def test_the_probe_needs_labeled_images_to_keep_out(toy_settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text("\n".join(Path(toy_settings["data.labeled"]).read_text().splitlines()[:2]))
    config = build_config(toy_settings, CHANGES, {"data.labeled": tmp_path / "two.txt"})
    with pytest.raises(ConfigError, match="needs at least 3 labeled images, to keep some out of a fit; got 2"):
        train(config, tmp_path / "run")


def test_the_probe_needs_its_decoder(toy_settings: Settings, tmp_path: Path) -> None:
    config = build_config(toy_settings, {"method.name": "probe"})
    with pytest.raises(ConfigError, match="--set model.decoder=pyramid, or --recipe probe"):
        train(config, tmp_path / "run")
