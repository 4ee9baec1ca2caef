"""Heads: scaling, stacked training, the full-batch solver and choosing, against scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.special import softmax
from sklearn.datasets import make_classification
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import (
    f1_score,
    log_loss,
    precision_recall_curve,
    r2_score,
    roc_auc_score,
)
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight

from pipeline.config import HeadsSettings, TaskSettings, ThresholdAim
from pipeline.corpus.tables import LabelledRows, TaskLabels, encode_parts
from pipeline.errors import DataError, SettingsError
from pipeline.heads import kernel, training
from pipeline.heads.choosing import choose_threshold, fit_temperature, list_scores, score
from pipeline.heads.class_weights import compute_class_weights, compute_tag_weights
from pipeline.heads.configurations import Configuration, group_by_shape, list_configurations
from pipeline.heads.features import MemoryFeatures, Scaling, StreamedFeatures
from pipeline.heads.targets import StackedLoss, draw_folds, make_targets
from pipeline.heads.task_types import LabelSummary
from pipeline.heads.tasks import Task, make_tasks
from pipeline.heads.training import Fit, TrainedHead, fit_heads
from pipeline.model.weights import name_tensors, read_centers, read_weights
from pipeline.onednn import multiply

SPAM = Task("spam", "binary", ("ham", "spam"), LabelSummary((300, 100), 400))
MOOD = Task("mood", "multiclass", ("a", "b", "c"), LabelSummary((150, 130, 120), 400))
WIDTH = 20


def make_data(rows: int = 600) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Features from which both tasks can be learned, about as well as real ones allow."""
    features, mood = make_classification(
        rows, WIDTH, n_informative=8, n_classes=3, flip_y=0.1, random_state=7
    )
    noise = np.random.default_rng(3).standard_normal(rows) * 2
    spam = (features[:, :3].sum(axis=1) + noise > 1.0).astype(int)
    return (features * 3 + 5).astype(np.float32), {"spam": spam, "mood": mood}


BASE = {
    "folds": None, "optimizer": "sgd", "learning_rate": 0.01, "batch_size": 64, "max_epochs": 10,
    "search": (),
}  # fmt: skip


def summarize(numbers: np.ndarray) -> LabelSummary:
    known = numbers[np.isfinite(numbers)]
    return LabelSummary((), len(known), float(known.mean()), float(known.std()))


def configure(**changes: object) -> list[Configuration]:
    return list_configurations(HeadsSettings(**{**BASE, **changes}), (0,))


def fit(
    tasks: Sequence[Task] = (SPAM, MOOD),
    *,
    data: tuple[np.ndarray, dict[str, np.ndarray]] | None = None,
    train_rows: int = 400,
    layers: tuple[int, ...] = (0,),
    **changes: object,
) -> Fit:
    features, labels = data or make_data()
    settings = HeadsSettings(**{**BASE, **changes})
    scaling = Scaling.fit(features[:train_rows])
    scaled = torch.from_numpy(scaling.apply(features))
    folds = draw_folds(np.arange(train_rows), settings.folds, 0) if settings.folds else None
    targets = make_targets(tasks, labels, train_rows, folds, "cpu")
    configurations = list_configurations(settings, layers)
    return fit_heads(
        lambda _: (MemoryFeatures(scaled, train_rows), scaling),
        targets, tasks, configurations, settings,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Steps so small that threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- class weights and scaling -----------------------------------------------------------------


def test_balanced_weights_are_scikit_learns_each_on_its_own_class() -> None:
    # First appearance is not the index: so the notebook's weights landed on wrong classes.
    labels = np.array([2, 2, 0, 2, 1, 2, 0, 2, 2, 2])
    counts = np.bincount(labels, minlength=3)
    found = compute_class_weights("balanced", ("a", "b", "c"), counts, "t")
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(found, expected)
    assert np.argmax(found) == 1  # the rarest class weighs most
    assert compute_class_weights("none", ("a", "b", "c"), counts, "t") is None
    given = compute_class_weights({"c": 3.0, "a": 1.0, "b": 2.0}, ("a", "b", "c"), counts, "t")
    assert given == (1.0, 2.0, 3.0)
    with pytest.raises(SettingsError, match="a weight for each of a, b, c, got a, b"):
        compute_class_weights({"a": 1.0, "b": 2.0}, ("a", "b", "c"), counts, "t")


def test_balanced_weight_of_an_absent_class_is_zero() -> None:
    found = compute_class_weights("balanced", ("a", "b", "c"), np.array([30, 0, 10]), "t")
    assert found is not None
    np.testing.assert_allclose(found, [40 / 60, 0, 2.0])


def test_effective_numbers_are_the_papers() -> None:
    """Cui et al. (2019), equation 2: E_n = (1 - β**n) / (1 - β); weights add up to C."""
    counts, beta = np.array([900, 90, 9]), 0.99
    found = compute_class_weights("effective_number", ("a", "b", "c"), counts, "t", beta=beta)
    effective = np.array([sum(beta**i for i in range(n)) for n in counts])
    np.testing.assert_allclose(found, 3 / effective / (1 / effective).sum())


def test_pos_weight_is_negatives_by_positives() -> None:
    assert compute_class_weights("pos_weight", ("ham", "spam"), np.array([90, 10]), "t") == (1, 9)
    tags = compute_tag_weights("pos_weight", ("x", "y"), np.array([20, 50]), 100, "t")
    assert tags == (4, 1)
    with pytest.raises(SettingsError, match="pos_weight needs two classes or tags"):
        compute_class_weights("pos_weight", ("a", "b", "c"), np.array([1, 1, 1]), "t")


def test_scaling_is_scikit_learns_and_folds_into_the_weights() -> None:
    features = make_data(300)[0]
    features[:, 4] = 3.25  # a constant feature
    scaling = Scaling.fit(features)
    expected = StandardScaler().fit_transform(features.astype(np.float64))
    np.testing.assert_allclose(scaling.apply(features), expected, atol=1e-4)
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((3, WIDTH)).astype(np.float32)
    bias = rng.standard_normal(3).astype(np.float32)
    folded, shifted = scaling.fold(weight, bias)
    np.testing.assert_allclose(
        features @ folded.T + shifted, scaling.apply(features) @ weight.T + bias, atol=1e-3
    )


@pytest.mark.parametrize("onednn", [True, False])
def test_products_are_torchs_whatever_the_layout(
    onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not onednn:
        monkeypatch.setattr("pipeline.onednn.has_onednn", lambda dtype: False)
    a, b = torch.randn(70, 33), torch.randn(12, 33)
    for rows in (a, a.T.contiguous().T, torch.randn(70, 40)[:, :33], a[::3], a[:0]):
        for others in (b, b.T.contiguous().T, torch.randn(12, 35)[:, 2:], b[:1]):
            expected = rows.double() @ others.double().T
            torch.testing.assert_close(multiply(rows, others).double(), expected, atol=1e-5, rtol=0)
    assert multiply(a.double(), b.double()).dtype == torch.float64


def to_probabilities(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    return softmax(np.hstack([0 * wide, wide]) if wide.shape[1] == 1 else wide, axis=1)


# --- the full-batch solver ---------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.3, 0.01, 1e-3])
def test_the_solver_reaches_scikit_learns_optimum(decay: float) -> None:
    features, labels = make_data()
    found = fit(optimizer="lbfgs", weight_decay=decay, max_epochs=200)
    scaler = StandardScaler().fit(features[:400].astype(np.float64))
    scaled = scaler.transform(features[:400].astype(np.float64))
    for head in found.heads:
        wanted = labels[head.task.name][:400]
        reference = LogisticRegression(C=1 / (400 * decay), max_iter=5000, tol=1e-8)
        reference.fit(scaled, wanted)
        logits = head.candidate.head.compute_logits(features[:400])
        ours = log_loss(wanted, to_probabilities(logits))
        weight = head.candidate.head.weight * scaler.scale_
        theirs = log_loss(wanted, reference.predict_proba(scaled))
        total = ours + decay / 2 * np.square(weight).sum()
        expected = theirs + decay / 2 * np.square(reference.coef_).sum()
        assert total == pytest.approx(expected, rel=1e-4)


def test_the_solver_reaches_ridge_regression() -> None:
    features, _ = make_data()
    numbers = features[:, 0] * 7 + np.random.default_rng(0).standard_normal(600) + 100
    labels = summarize(numbers[:400])
    task = Task("price", "regression", labels=labels, metric="r2")
    (head,) = fit([task], data=(features, {"price": numbers}), optimizer="lbfgs",
                  weight_decay=0.1, max_epochs=100).heads  # fmt: skip
    scaled = StandardScaler().fit(features[:400].astype(np.float64)).transform(features)
    # The mean of squares plus λ / 2 of the squared weights is Ridge's with alpha = λ n / 2.
    reference = Ridge(alpha=0.1 * 400 / 2).fit(scaled[:400], numbers[:400])
    ours = labels.restore(head.candidate.head.compute_logits(features[400:])[:, 0])
    np.testing.assert_allclose(ours, reference.predict(scaled[400:]), rtol=1e-3)


@pytest.mark.parametrize(
    ("center", "size"),
    # Nanoseconds of 2023 that are seconds apart; numbers beyond float32; numbers that differ in the
    # twelfth digit; numbers below the smallest of float32; numbers whose sum leaves float64.
    [(1.7e18, 3e9), (1e40, 1e40), (1e6, 1e-6), (3e-60, 1e-60), (-1e149, 1e148)],
)
@pytest.mark.parametrize("optimizer", ["lbfgs", "adamw"])
def test_numbers_far_from_zero_are_learned_as_well_as_others(
    optimizer: str, center: float, size: float
) -> None:
    """A regression does not depend on the unit and the origin of its labels; scikit-learn's Ridge
    in exact distances from the centre is the reference."""
    features, _ = make_data()
    plain = features[:, 0] + np.random.default_rng(0).standard_normal(600) / 4
    numbers = center + size * plain
    rows = LabelledRows(
        pa.array([bytes(16)] * 600, pa.binary(16)),
        encode_parts(["train"] * 400 + ["validation"] * 200),
        {"price": TaskLabels((), numbers, "number")},
    )
    tasks = make_tasks({"price": TaskSettings(metric="r2")}, rows)
    (head,) = fit(
        tasks, data=(features, {"price": numbers}), optimizer=optimizer, weight_decay=1e-3,
        learning_rate=0.02, max_epochs=100,
    ).heads  # fmt: skip
    scaled = StandardScaler().fit(features[:400].astype(np.float64)).transform(features)
    reference = Ridge(alpha=1e-3 * 400 / 2).fit(scaled[:400], plain[:400])
    expected = reference.score(scaled[400:], (numbers[400:] - center) / size)
    assert expected > 0.9
    assert head.scores[0].value == pytest.approx(expected, abs=0.01)
    logits = head.candidate.head.compute_logits(features[400:])
    restored = tasks[0].labels.restore(logits)[:, 0]
    found = r2_score((numbers[400:] - center) / size, (restored - center) / size)
    assert found == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            [(500, 1e200)],
            r"price: a label is 1e\+200; squared errors of numbers beyond 1e\+150",
        ),
        ([(500, 1e30)], r"task price: a label is 1e\+30, which is more than 1e\+15 deviations"),
        ([(slice(None), 4.5)], r"task price: all 400 training rows are 4.5; a head needs numbers"),
        ([(slice(0, None, 2), 9e-300), (slice(1, None, 2), 4e-300)], r"labels differ by 2.5e-300"),
        ([(0, 1.7e308), (1, -1.7e308)], r"squared errors of numbers beyond 1e\+150 are not finite"),
    ],
)
def test_numbers_of_which_no_figure_can_be_computed_are_refused(
    changes: list[tuple[object, float]], message: str
) -> None:
    numbers = np.random.default_rng(0).standard_normal(600)
    for chosen, value in changes:
        numbers[chosen] = value  # type: ignore[call-overload]
    rows = LabelledRows(
        pa.array([bytes(16)] * 600, pa.binary(16)),
        encode_parts(["train"] * 400 + ["test"] * 200),
        {"price": TaskLabels((), numbers, "number")},
    )
    with pytest.raises(DataError, match=message):
        make_tasks({"price": TaskSettings()}, rows)


@pytest.mark.parametrize("optimizer", ["lbfgs", "adamw"])
def test_a_loss_that_is_not_a_number_stops_the_run(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the validation rows is as good as none, though the others are finite."""
    average = StackedLoss.average

    def spoil(
        self: StackedLoss,
        logits: torch.Tensor,
        labels: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        training: bool = True,
    ) -> torch.Tensor:
        losses = average(self, logits, labels, mask, training=training)
        return losses if training else losses * np.nan

    monkeypatch.setattr(StackedLoss, "average", spoil)
    with pytest.raises(DataError, match="task spam: the loss is not a number in epoch 1"):
        fit((SPAM,), optimizer=optimizer)


# --- kernel heads ------------------------------------------------------------------------------

KERNEL: dict[str, object] = {
    "optimizer": "lbfgs", "head": "kernel", "weight_decay": 0.01, "max_epochs": 200,
}  # fmt: skip


def test_kernel_heads_are_scikit_learns() -> None:
    """Kernel logistic regression on the whole kernel, written down from its definition."""
    features, labels = make_data()
    scaled = StandardScaler().fit(features[:400].astype(np.float64)).transform(features)
    gamma = 1 / (0.8**2 * 2 * scaled[:400].var(axis=0).sum())
    inner = rbf_kernel(scaled[:400], gamma=gamma)
    nystroem = Nystroem(gamma=gamma, n_components=400).fit(scaled[:400])
    # Our features have a mean square of 1; these have that of the centered kernel's diagonal.
    centered = inner - inner.mean(axis=0) - inner.mean(axis=1)[:, None] + inner.mean()
    size = np.trace(centered) / 400**2
    for head in fit(bandwidth=0.8, **KERNEL).heads:
        wanted = labels[head.task.name][:400]
        reference = LogisticRegression(C=1 / (400 * 0.01 * size), max_iter=5000, tol=1e-8)
        reference.fit(nystroem.transform(scaled[:400]), wanted)

        def predict(rows: slice, head: TrainedHead = head) -> np.ndarray:
            return to_probabilities(head.candidate.head.compute_logits(features[rows]))

        weight = head.candidate.head.weight.astype(np.float64)
        squares = np.einsum("ch,hl,cl->", weight, inner, weight)
        total = log_loss(wanted, predict(slice(400))) + 0.005 * size * squares
        theirs = log_loss(wanted, reference.predict_proba(nystroem.transform(scaled[:400])))
        expected = theirs + 0.005 * size * np.square(reference.coef_).sum()
        assert total == pytest.approx(expected, rel=1e-4)
        unseen = reference.predict_proba(nystroem.transform(scaled[400:]))
        np.testing.assert_allclose(predict(slice(400, None)), unseen, atol=0.01)
        assert np.abs(unseen - unseen.mean(axis=0)).max() > 0.2


@pytest.mark.parametrize(
    ("most", "bandwidth"), [(4096, 1.0), (150, 1.0), (4096, 0.1), (4096, 3.0), (150, 3.0)]
)
def test_saved_kernel_heads_give_for_raw_rows_what_was_trained(
    most: int, bandwidth: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "MAX_CENTERS", most)
    features, _ = make_data()
    search = ({"logit_adjustment": (0, 0.5)},)
    spam, mood = fit(bandwidth=bandwidth, search=search, **KERNEL).heads
    for head in (spam, mood):
        logits = head.candidate.head.compute_logits(features[400:])
        np.testing.assert_allclose(logits, head.candidate.held_out, atol=1e-3)
        tensors = name_tensors(head.task.name, head.candidate.head)
        assert head.candidate.head.centers is not None
        tensors |= name_tensors("kernel_0", head.candidate.head.centers)
        outputs = logits.shape[1]
        centers = read_centers("kernel_0", tensors, WIDTH)
        again = read_weights(head.task.name, tensors, outputs, outputs, WIDTH, centers)
        np.testing.assert_array_equal(again.compute_logits(features[400:]), logits)
        with pytest.raises(ValueError, match=r"kernel_0.places: .* tells of shape \(\d+, 21\)"):
            read_centers("kernel_0", tensors, WIDTH + 1)
        with pytest.raises(ValueError, match=r"kernel_1.places: no such tensor"):
            read_centers("kernel_1", tensors, WIDTH)
    assert spam.candidate.head.weight.shape == (1, min(most, 400))
    assert spam.candidate.head.centers is mood.candidate.head.centers
    if bandwidth == 1:
        assert mood.scores[0].loss < 0.9 * np.log(3)


def test_the_bandwidth_is_in_units_of_how_far_rows_are_apart() -> None:
    """So that it means the same whatever the features' unit, and however many are constant."""
    rows = torch.from_numpy(make_data()[0])
    whole = MemoryFeatures(rows, 400)
    other = MemoryFeatures(torch.hstack([rows * 100 + 7, torch.ones(len(rows), 3)]), 400)
    made = kernel.fit_kernel(whole, Scaling.identity(WIDTH), 1.0)
    same = kernel.fit_kernel(other, Scaling.identity(WIDTH + 3), 1.0)
    torch.testing.assert_close(made.features.features, same.features.features, atol=2e-2, rtol=0)
    likeness = made.centers.compare(rows[:400].numpy())
    distances = -np.log(likeness)
    assert distances.mean() == pytest.approx(1, rel=1e-3)
    np.testing.assert_allclose(np.diag(likeness), 1, atol=1e-5)


# --- stacks ------------------------------------------------------------------------------------

GRIDS: dict[str, dict[str, object]] = {
    "sgd": {"search": ({"learning_rate": (0.003, 0.01, 0.03), "weight_decay": (0.0, 0.1)},)},
    "adamw": {"optimizer": "adamw", "search": ({"learning_rate": (0.003, 0.01)},)},
    "hidden": {"optimizer": "adamw", "head": "hidden", "hidden_size": 8, "dropout": 0.3,
               "search": ({"weight_decay": (0.0, 0.3)},)},
    "losses": {"search": ({"loss": ("focal", "cross_entropy"), "label_smoothing": (0.0, 0.1),
                           "class_weights": ("none", "balanced")},)},
    "lbfgs": {"optimizer": "lbfgs", "max_epochs": 100,
              "search": ({"weight_decay": (1.0, 0.1, 0.01)},)},
    "kernel": {"optimizer": "lbfgs", "head": "kernel", "max_epochs": 100,
               "search": ({"weight_decay": (0.3, 0.1), "bandwidth": (0.7, 1.0)},)},
}  # fmt: skip


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("folds", [None, 3])
def test_a_stack_is_each_configuration_alone(name: str, folds: int | None) -> None:
    stacked = fit(folds=folds, **GRIDS[name])
    configurations = configure(**GRIDS[name])
    assert stacked.configurations == len(configurations) > 1
    for number, head in enumerate(stacked.heads):
        alone = []
        for configuration in configurations:
            settings = {
                key: value
                for key, value in configuration.describe().items()
                if key in HeadsSettings.model_fields and key != "layers"
            }
            changes = {key: (value,) for key, value in configuration.loss_changes.items()}
            search = {"search": (changes,)} if changes else {}
            grid = {k: v for k, v in GRIDS[name].items() if k != "search"}
            alone.append(fit(folds=folds, **{**grid, **settings, **search}).heads[number])
        best = head.scores[0].numbers[0]
        for table in head.scores:
            (number_alone,) = table.numbers
            assert alone[number_alone].scores[0].loss == pytest.approx(table.loss, rel=1e-5)
        weight = head.candidate.head.weight
        other = alone[best].candidate.head.weight
        # Those of a kernel head nearly cancel, so they are compared with the largest of them.
        size = np.abs(weight).max() if name == "kernel" else 1
        np.testing.assert_allclose(weight, other, atol=1e-5 * size)
        np.testing.assert_allclose(
            head.candidate.held_out, alone[best].candidate.held_out, atol=1e-4
        )


def test_stacks_hold_one_shape() -> None:
    found = configure(
        optimizer="sgd",
        search=({"head": ("linear", "hidden"), "learning_rate": (0.1, 0.2, 0.3)},),
    )
    groups = group_by_shape(found)
    assert sorted(number for group in groups for number, _ in group) == list(range(6))
    assert [len(group) for group in groups] == [3, 3]
    assert all(len({c.shape for _, c in group}) == 1 for group in groups)
    losses = {"loss": ("focal", "cross_entropy"), "focal_gamma": (1.0, 2.0)}
    groups = group_by_shape(configure(search=(losses,)))
    assert [[c.loss_changes["loss"] for _, c in group] for group in groups] == [
        ["focal"] * 2,
        ["cross_entropy"] * 2,
    ]


@pytest.mark.parametrize("name", ["adamw", "lbfgs"])
def test_a_stack_too_large_trains_in_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit(**GRIDS[name])
    monkeypatch.setattr(training, "_MAX_STACK_NUMBERS", 600 * 3)  # the logits of one configuration
    parted = fit(**GRIDS[name])
    assert parted.epochs > whole.epochs
    for a, b in zip(whole.heads, parted.heads, strict=True):
        assert a.configuration == b.configuration
        np.testing.assert_allclose(a.candidate.head.weight, b.candidate.head.weight, atol=1e-5)


def test_lbfgs_refuses_what_it_cannot_train() -> None:
    with pytest.raises(SettingsError, match=r"heads.search.0.optimizer: lbfgs trains heads"):
        configure(optimizer="lbfgs", search=({"head": ("hidden",)},))


def test_kernel_heads_are_trained_by_lbfgs_on_joined_layers_whatever_the_others_are() -> None:
    search = ({"head": ("linear", "kernel"), "learning_rate": (0.1, 0.2), "seeds": (0, 1)},)
    found = configure(optimizer="adamw", combine="mix", dropout=0.5, search=search)
    assert [c.head for c in found] == [*["linear"] * 4, "kernel"]
    kernel_head = found[-1]
    told = (kernel_head.optimizer, kernel_head.combine, kernel_head.dropout)
    assert told == ("lbfgs", "join", 0.0)


def test_training_by_torchs_own_optimizers_gives_the_same_heads() -> None:
    """One configuration against ``torch.optim`` on ``torch.nn.Linear``, same start and batches."""
    features, labels = make_data()
    scaled = torch.from_numpy(Scaling.fit(features[:400]).apply(features))
    for optimizer in ("sgd", "adamw"):
        (head,) = fit(
            (MOOD,), optimizer=optimizer, weight_decay=0.05, keep="last", patience=None
        ).heads
        torch.manual_seed(0)
        linear = torch.nn.Linear(WIDTH, 3)
        own = (
            torch.optim.AdamW(linear.parameters(), lr=0.01, weight_decay=0.05)
            if optimizer == "adamw"
            else torch.optim.SGD(
                linear.parameters(), lr=0.01, weight_decay=0.05, momentum=0.9, nesterov=True
            )
        )
        order = torch.Generator().manual_seed(0)
        wanted = torch.from_numpy(labels["mood"])
        for _ in range(10):
            for rows in torch.randperm(400, generator=order).split(64):
                loss = torch.nn.functional.cross_entropy(linear(scaled[rows]), wanted[rows])
                own.zero_grad()
                loss.backward()
                own.step()
        with torch.no_grad():
            expected = linear(scaled[400:]).numpy()
        np.testing.assert_allclose(head.candidate.held_out, expected, atol=1e-4)


def test_the_same_seed_gives_the_same_heads_bit_for_bit() -> None:
    hidden = {"head": "hidden", "dropout": 0.5}
    for changes in ({}, {"optimizer": "lbfgs"}, hidden, KERNEL):
        first, second = fit(**changes), fit(**changes)
        for a, b in zip(first.heads, second.heads, strict=True):
            np.testing.assert_array_equal(a.candidate.head.weight, b.candidate.head.weight)
    assert not np.array_equal(
        fit().heads[0].candidate.head.weight, fit(seed=1).heads[0].candidate.head.weight
    )


def test_each_task_keeps_an_epoch_of_its_own_and_training_stops_early() -> None:
    found = fit(learning_rate=0.3, patience=5, max_epochs=200)
    assert found.epochs == max(head.candidate.epoch for head in found.heads) + 5
    for head in found.heads:
        curve = head.candidate.curve[:, 1]
        assert head.candidate.validation_loss == pytest.approx(curve.min())
        assert head.candidate.epoch == 1 + int(curve.argmin())


def test_keep_last_takes_the_last_epoch() -> None:
    found = fit(keep="last", patience=None, max_epochs=7)
    assert {head.candidate.epoch for head in found.heads} == {7}


def test_a_loss_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(DataError, match="loss is not a number"):
        fit(learning_rate=1e30, patience=None, max_epochs=5)


def test_seeds_are_averaged_and_the_first_is_kept() -> None:
    (head,) = fit((MOOD,), max_epochs=2, search=({"seeds": (4, 5, 6)},)).heads
    assert head.configuration.seed == 4
    assert sorted(head.seeds) == [5, 6]
    assert len(head.scores) == 1
    assert head.scores[0].deviation is not None
    alone = [fit((MOOD,), max_epochs=2, seed=s).heads[0].scores[0].value for s in (4, 5, 6)]
    assert head.scores[0].value == pytest.approx(np.mean(alone))
    assert head.scores[0].deviation == pytest.approx(np.std(alone, ddof=1))


def test_settings_that_do_not_concern_a_head_make_no_other_of_it() -> None:
    found = configure(
        search=({"optimizer": ("lbfgs", "adamw"), "learning_rate": (0.1, 0.2), "seeds": (1, 2, 3)},)
    )
    assert [c.optimizer for c in found] == ["lbfgs", *["adamw"] * 6]
    assert "seed" not in found[0].describe()
    assert len(configure(search=({"hidden_size": (4, 8)},))) == 1
    both = configure(search=({"hidden_size": (4, 8), "head": ("linear", "hidden")},))
    assert [c.head for c in both] == ["linear", "hidden", "hidden"]
    kernels = {"head": ("linear", "kernel"), "optimizer": ("lbfgs",)}
    both = configure(search=({**kernels, "bandwidth": (0.5, 1.0), "hidden_size": (4, 8)},))
    assert [c.describe().get("bandwidth") for c in both] == [None, 0.5, 1.0]


def test_a_task_keeps_what_it_gives_while_the_search_tries_it_for_others() -> None:
    """The spam task gives its logit adjustment; its head is the one that it has alone."""
    settings = HeadsSettings(
        tasks={"spam": TaskSettings(logit_adjustment=1.0), "mood": TaskSettings()}
    )
    _, labels = make_data()
    rows = LabelledRows(
        pa.array([bytes(16)] * 600, pa.binary(16)),
        encode_parts(["train"] * 400 + ["validation"] * 200),
        {
            "spam": TaskLabels(("ham", "spam"), labels["spam"]),
            "mood": TaskLabels(("a", "b", "c"), labels["mood"]),
        },
    )
    tasks = make_tasks(settings.tasks, rows, settings.kept)
    found = fit(tasks, optimizer="lbfgs", search="auto", max_epochs=200).heads
    tried = [{c.loss_changes["logit_adjustment"] for c in head.tried} for head in found]
    assert tried == [{1.0}, {0, 0.5}]
    assert all({c.head for c in head.tried} == {"linear", "kernel"} for head in found)
    chosen = found[0].configuration
    assert chosen.describe()["logit_adjustment"] == 1.0
    (alone,) = fit(
        tasks[:1], optimizer="lbfgs", head=chosen.head, weight_decay=chosen.weight_decay,
        max_epochs=200,
    ).heads  # fmt: skip
    same = alone.candidate.head.weight
    largest = float(np.abs(same).max())
    np.testing.assert_allclose(found[0].candidate.head.weight, same, atol=0.01 * largest)
    plain = make_tasks({"spam": TaskSettings()}, rows)
    (other,) = fit(
        plain, optimizer="lbfgs", head=chosen.head, weight_decay=chosen.weight_decay,
        max_epochs=200,
    ).heads  # fmt: skip
    # An adjustment is one of the bias.
    assert np.abs(other.candidate.head.bias - alone.candidate.head.bias).max() > 0.5


def test_a_setting_that_means_nothing_for_the_type_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = LabelledRows(
        pa.array([bytes(16)] * 6, pa.binary(16)),
        encode_parts(["train"] * 4 + ["validation"] * 2),
        {
            "price": TaskLabels((), np.arange(6.0), "number"),
            "mood": TaskLabels(("a", "b", "c"), np.arange(6) % 3),
        },
    )
    make_tasks({"price": TaskSettings(), "mood": TaskSettings(class_weights="balanced")}, rows)
    assert capsys.readouterr().out == ""
    given = {"price": TaskSettings(logit_adjustment=1), "mood": TaskSettings(threshold="f1")}
    make_tasks(given, rows)
    assert capsys.readouterr().out.splitlines() == [
        "warning: heads.tasks.price.logit_adjustment: 1.0 does nothing for a regression task",
        "warning: heads.tasks.mood.threshold: 'f1' does nothing for a multiclass task",
    ]


def test_the_search_table_tells_the_kind_of_loss_and_the_loss() -> None:
    (head,) = fit((MOOD,), max_epochs=2, search=({"loss": ("focal", "cross_entropy")},)).heads
    rows = list_scores(head.scores, configure(search=({"loss": ("focal", "cross_entropy")},)))
    assert {row["loss"] for row in rows} == {"focal", "cross_entropy"}
    assert [row["held_out_loss"] for row in rows] == [score.loss for score in head.scores]


def test_a_mix_of_layers_is_folded_into_weights_on_all_of_them() -> None:
    features, labels = make_data()
    (head,) = fit(
        (MOOD,), data=(features, labels), layers=(0, 1), combine="mix", learning_rate=0.1
    ).heads
    assert head.candidate.layer_mix is not None
    first, second = head.candidate.layer_mix
    assert first + second == pytest.approx(1)
    assert abs(first - second) > 1e-3  # it was learned
    deviation = features[:400].astype(np.float64).std(axis=0)
    scaled = head.candidate.head.weight * deviation
    # Both halves are one weight, times its layer's share.
    np.testing.assert_allclose(scaled[:, :10] * second, scaled[:, 10:] * first, atol=1e-5)


# --- odd corpora -------------------------------------------------------------------------------


def test_rows_without_a_label_count_for_the_other_tasks_only() -> None:
    features, labels = make_data()
    partial = {**labels, "spam": labels["spam"].copy()}
    partial["spam"][::3] = -1
    for optimizer in ("sgd", "lbfgs"):
        whole = fit(data=(features, labels), optimizer=optimizer)
        found = fit(data=(features, partial), optimizer=optimizer)
        np.testing.assert_array_equal(
            whole.heads[1].candidate.head.weight, found.heads[1].candidate.head.weight
        )
    # What a row without a label holds changes nothing; and the optimum is that of the others.
    known = np.flatnonzero(partial["spam"][:400] >= 0)
    scaled = Scaling.fit(features[:400]).apply(features[:400])[known]
    reference = LogisticRegression(C=1 / (len(known) * 0.03), max_iter=5000, tol=1e-8)
    reference.fit(scaled.astype(np.float64), partial["spam"][known])
    (head,) = fit((SPAM,), data=(features, partial), optimizer="lbfgs", weight_decay=0.03).heads
    ours = head.candidate.head.weight * features[:400].astype(np.float64).std(axis=0)
    np.testing.assert_allclose(ours, reference.coef_, atol=5e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "lbfgs"])
@pytest.mark.parametrize("folds", [None, 2])
def test_odd_corpora_are_learned(optimizer: str, folds: int | None) -> None:
    rng = np.random.default_rng(0)
    features, labels = make_data()
    features[:, 3] = 7.0  # constant
    many = {f"t{n}": (labels["mood"] == n % 3).astype(int) for n in range(12)}
    twelve = [Task(f"t{n}", "binary", ("no", "yes"), LabelSummary((2, 1), 3)) for n in range(12)]
    changes = {"optimizer": optimizer, "folds": folds, "max_epochs": 30}
    found = fit(twelve, data=(features, many), **changes)
    assert len(found.heads) == 12
    assert all(head.scores[0].loss < 0.75 for head in found.heads)
    thousand = Task(
        "word", "multiclass", tuple(map(str, range(1000))), LabelSummary((1,) * 1000, 1000)
    )
    words = {"word": rng.integers(0, 1000, 600)}
    (head,) = fit([thousand], data=(features, words), **{**changes, "max_epochs": 3}).heads
    assert head.candidate.head.weight.shape == (1000, WIDTH)
    ten = (features[:10], {"spam": np.array([0, 1] * 5)})
    (head,) = fit((SPAM,), data=ten, train_rows=7, **changes).heads
    assert np.isfinite(head.candidate.head.weight).all()
    gone = {**labels, "mood": labels["mood"].copy()}
    gone["mood"][400:] = 0  # classes 1 and 2 are absent from validation
    assert np.isfinite(fit(data=(features, gone), **changes).heads[1].scores[0].value)


@pytest.mark.parametrize("optimizer", ["sgd", "lbfgs"])
def test_tags_ordinals_and_numbers_are_learned(optimizer: str) -> None:
    features, _ = make_data()
    tags = np.stack([features[:, n] > 5 for n in range(4)], axis=1).astype(np.int8)
    tags[7] = -1
    level = np.clip(np.round(features[:, 0] - 3), 0, 3).astype(int)
    price = features[:, 1] * 10.0
    price[5] = np.nan
    halves, ends = LabelSummary((200,) * 4, 400), LabelSummary((150, 50, 50, 150), 400)
    tasks = [
        Task("tags", "multilabel", tuple("abcd"), halves, metric="f1_micro"),
        Task("level", "ordinal", tuple("0123"), ends, metric="accuracy"),
        Task("price", "regression", labels=summarize(price), metric="r2"),
    ]
    found = fit(
        tasks, data=(features, {"tags": tags, "level": level, "price": price}),
        optimizer=optimizer, weight_decay=1e-3, max_epochs=100, learning_rate=0.02, folds=3,
    )  # fmt: skip
    scores = {head.task.name: head.scores[0].value for head in found.heads}
    assert scores["tags"] > 0.85
    assert scores["level"] > 0.7
    assert scores["price"] > 0.99
    assert found.heads[1].candidate.head.weight.shape == (3, WIDTH)


def test_streamed_training_is_that_in_memory_within_noise() -> None:
    features, labels = make_data()

    def read(rows: int, batch: int, seed: int | None):  # type: ignore[no-untyped-def]
        rng = np.random.default_rng(seed)
        windows = np.split(np.arange(rows), range(128, rows, 128))
        for window in windows if seed is None else rng.permuted(np.array(windows, object)):
            chosen = np.asarray(window if seed is None else rng.permutation(window), np.int64)
            for start in range(0, len(chosen), batch):
                yield chosen[start : start + batch], features[chosen[start : start + batch]]

    scaling = Scaling.fit_blocks(block for _, block in read(400, 64, None))
    expected = Scaling.fit(features[:400])
    np.testing.assert_allclose(scaling.mean, expected.mean, rtol=1e-6)
    np.testing.assert_allclose(scaling.deviation, expected.deviation, rtol=1e-5)
    for changes in ({"optimizer": "lbfgs"}, {"optimizer": "sgd", "max_epochs": 30}):
        settings = HeadsSettings(**{**BASE, **changes})
        targets = make_targets((SPAM, MOOD), labels, 400, None, "cpu")
        streamed = fit_heads(
            lambda _: (StreamedFeatures(read, 600, 400, scaling, "cpu"), scaling),
            targets, (SPAM, MOOD), list_configurations(settings, (0,)), settings,
        )  # fmt: skip
        whole = fit(**changes)
        for a, b in zip(streamed.heads, whole.heads, strict=True):
            assert a.scores[0].loss == pytest.approx(b.scores[0].loss, rel=0.02)


# --- folds and choosing ------------------------------------------------------------------------


def test_folds_never_part_rows_of_one_text() -> None:
    texts = np.random.default_rng(0).integers(0, 60, 300)
    folds = draw_folds(texts, 5, 0)
    assert set(folds) == set(range(5))
    assert all(len(set(folds[texts == text])) == 1 for text in texts)


def test_rows_are_judged_by_heads_that_have_not_seen_them() -> None:
    """Against scikit-learn, fold by fold."""
    features, labels = make_data()
    (head,) = fit((SPAM,), optimizer="lbfgs", weight_decay=0.1, folds=4, max_epochs=200).heads
    folds = draw_folds(np.arange(400), 4, 0)
    scaled = Scaling.fit(features[:400]).apply(features).astype(np.float64)
    expected = np.empty(600)
    for fold in range(4):
        train = np.flatnonzero(folds != fold)
        reference = LogisticRegression(C=1 / (len(train) * 0.1), tol=1e-8, max_iter=5000)
        reference.fit(scaled[train], labels["spam"][train])
        expected[:400][folds == fold] = reference.decision_function(scaled[:400][folds == fold])
    whole = LogisticRegression(C=1 / 40, tol=1e-8, max_iter=5000)
    expected[400:] = whole.fit(scaled[:400], labels["spam"][:400]).decision_function(scaled[400:])
    np.testing.assert_allclose(head.candidate.held_out[:, 0], expected, atol=0.02)


def test_metrics_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    logits = rng.standard_normal((200, 3)) + 2 * np.eye(3)[labels]
    expected = f1_score(labels, logits.argmax(axis=1), average="macro")
    assert score(MOOD, "f1_macro", logits, labels) == pytest.approx(expected)
    odds = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert score(MOOD, "loss", logits, labels) == pytest.approx(log_loss(labels, odds))
    yes = (labels > 0).astype(int)
    one = np.round(logits[:, [1]], 1)  # with ties
    assert score(SPAM, "f1", one, yes) == pytest.approx(f1_score(yes, one[:, 0] > 0))
    assert score(SPAM, "roc_auc", one, yes) == pytest.approx(roc_auc_score(yes, one[:, 0]))
    with np.errstate(over="ignore"):
        expected = log_loss(yes, 1 / (1 + np.exp(-one[:, 0])))
    assert score(SPAM, "loss", one, yes) == pytest.approx(expected)


def test_thresholds_serve_their_aims() -> None:
    rng = np.random.default_rng(1)
    positive = rng.random(500) < 0.3
    p = np.clip(rng.normal(0.35 + 0.3 * positive, 0.15), 0.001, 0.999)
    precision, recall, _ = precision_recall_curve(positive, p)

    def measure(threshold: float) -> tuple[float, float]:
        chosen = p > threshold
        return (chosen & positive).sum() / chosen.sum(), (chosen & positive).sum() / positive.sum()

    best = max(2 * precision * recall / np.maximum(precision + recall, 1e-12))
    got, found = measure(choose_threshold("f1", p, positive))
    assert 2 * got * found / (got + found) == pytest.approx(best)
    got, found = measure(choose_threshold(ThresholdAim(precision=0.9), p, positive))
    assert got >= 0.9
    assert found == pytest.approx(recall[precision >= 0.9].max())
    got, found = measure(choose_threshold(ThresholdAim(recall=0.9), p, positive))
    assert found >= 0.9
    assert got == pytest.approx(precision[recall >= 0.9].max())
    aim = ThresholdAim(false_positive=5.0, false_negative=1.0)
    chosen = p > choose_threshold(aim, p, positive)
    cost = 5 * (chosen & ~positive).sum() + (~chosen & positive).sum()
    costs = [5 * ((p > t) & ~positive).sum() + (~(p > t) & positive).sum() for t in [0, *p, 1]]
    assert cost == min(costs)
    assert choose_threshold(0.7, p, positive) == 0.7
    assert choose_threshold("f1", p, np.zeros(500, bool)) == 0.5


def test_the_temperature_undoes_overconfidence() -> None:
    rng = np.random.default_rng(0)
    true = rng.standard_normal((20_000, 3))
    odds = np.exp(true) / np.exp(true).sum(axis=1, keepdims=True)
    labels = (odds.cumsum(axis=1) < rng.random((20_000, 1))).sum(axis=1)
    assert fit_temperature(MOOD, true * 4, labels) == pytest.approx(4, rel=0.05)


# --- tasks against labels ----------------------------------------------------------------------


def make_labels(train: list[int], classes: tuple[str, ...] = ("ham", "spam")) -> LabelledRows:
    labels = np.array([*train, 0, 1], np.int64)
    parts = encode_parts(["train"] * len(train) + ["validation", "test"])
    keys = pa.array([bytes([n]) * 16 for n in range(len(labels))], pa.binary(16))
    return LabelledRows(keys, parts, {"spam": TaskLabels(classes, labels)})


def test_tasks_are_checked_against_the_labels(capsys: pytest.CaptureFixture[str]) -> None:
    (task,) = make_tasks(None, make_labels([0, 1, 0, -1]))
    assert (task.type, task.labels, task.metric) == ("binary", LabelSummary((2, 1), 3), "f1")
    with pytest.raises(DataError, match="all 3 training rows are 'ham'"):
        make_tasks(None, make_labels([0, 0, 0]))
    with pytest.raises(DataError, match="none of the 2 training rows has a label"):
        make_tasks(None, make_labels([-1, -1]))
    with pytest.raises(SettingsError, match=r"no such label .* did you mean `spam`"):
        make_tasks({"spm": TaskSettings()}, make_labels([0, 1]))
    with pytest.raises(SettingsError, match="metric: must be one of f1, accuracy, precision_macro"):
        make_tasks({"spam": TaskSettings(metric="r2")}, make_labels([0, 1]))
    with pytest.raises(SettingsError, match="loss: must be one of cross_entropy, focal, least"):
        make_tasks({"spam": TaskSettings(loss="mse")}, make_labels([0, 1]))
    three = make_labels([0, 1, 0], ("a", "b", "c"))
    with pytest.raises(SettingsError, match="binary needs two classes, the label has 3"):
        make_tasks({"spam": TaskSettings(type="binary")}, three)
    (task,) = make_tasks({"spam": TaskSettings()}, three)
    assert task.type == "multiclass"
    assert "no training row is 'c'" in capsys.readouterr().out
    (task,) = make_tasks({"spam": TaskSettings(type="multiclass")}, make_labels([0, 1]))
    assert task.outputs == 2
    numbers = LabelledRows(
        three.keys, three.parts, {"n": TaskLabels((), np.full(5, 3.0), kind="number")}
    )
    with pytest.raises(DataError, match="rows are 3; a head needs numbers that differ"):
        make_tasks(None, numbers)
