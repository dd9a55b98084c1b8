"Metrics against libraries that nobody here wrote: scikit-learn, scipy, and plain definitions."
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, stats
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from gsdnet import benchmark, metrics

SEEDS = st.integers(0, 2**31)
QUICK = settings(max_examples=20, deadline=None)


def answers(seed, n=60, C=4, unlabelled=0.1):
    "Labels, some of them -1, and probabilities."
    rng = np.random.default_rng(seed)
    label = np.where(rng.random(n) < unlabelled, -1, rng.integers(0, C, n))
    label[0] = 0
    return label, rng.dirichlet(np.full(C, .5), n)


@QUICK
@given(SEEDS, st.integers(2, 7))
def test_classification_is_scikit_learns(seed, C):
    label, p = answers(seed, C=C)
    kept = label >= 0
    y, a = label[kept], p[kept].argmax(1)
    m = metrics.classification_metrics(label, p)
    report = sk.classification_report(y, a, labels=np.unique(y), output_dict=True, zero_division=0)
    support = {k: v["support"] for k, v in report.items() if k.isdigit()}
    weighted = sum(report[k]["f1-score"] * n for k, n in support.items()) / sum(support.values())
    assert m["accuracy"] == pytest.approx(sk.accuracy_score(y, a))
    assert m["weighted_f1"] == pytest.approx(weighted)
    assert m["macro_f1"] == pytest.approx(report["macro avg"]["f1-score"])
    assert m["uar"] == pytest.approx(sk.confusion_matrix(y, a, normalize="true", labels=range(C)).diagonal()[np.unique(y)].mean())
    assert m["nll"] == pytest.approx(sk.log_loss(y, p[kept], labels=range(C)))


@QUICK
@given(SEEDS)
def test_reliability_is_scikit_learns_calibration_curve(seed):
    label, p = answers(seed, n=400, unlabelled=0)
    r = metrics.reliability(label, p, bins=10)
    right = p.argmax(1) == label
    share, confidence = calibration_curve(right, p.max(1), n_bins=10, strategy="uniform")
    np.testing.assert_allclose(r["accuracy"], share)
    np.testing.assert_allclose(r["confidence"], confidence)
    assert r["count"].sum() == 400


@QUICK
@given(SEEDS)
def test_sentiment_is_scipys_and_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    score = np.round(rng.uniform(-3, 3, 80), 1)
    score[rng.random(80) < .2] = 0
    predicted = score * .5 + rng.normal(size=80)
    with_holes = np.append(score, np.nan)
    m = metrics.sentiment_metrics(with_holes, np.append(predicted, 0.))
    signed = score != 0
    assert m["mae"] == pytest.approx(sk.mean_absolute_error(score, predicted))
    assert m["corr"] == pytest.approx(stats.pearsonr(score, predicted).statistic)
    assert m["accuracy"] == pytest.approx(sk.accuracy_score(score[signed] > 0, predicted[signed] > 0))
    assert m["weighted_f1"] == pytest.approx(sk.f1_score(score[signed] > 0, predicted[signed] > 0, average="weighted"))


@QUICK
@given(SEEDS, st.integers(1, 6))
def test_recovery_is_scikit_learns(seed, d):
    rng = np.random.default_rng(seed)
    x, y, mask = rng.normal(size=(5, 7, d)), rng.normal(size=(5, 7, d)), rng.random((5, 7)) < .4
    mask[0, 0] = True
    m = metrics.recovery_metrics(x, y, mask)
    assert m["recovery_mse"] == pytest.approx(sk.mean_squared_error(y[mask], x[mask]))
    cosine = np.diagonal(sk.pairwise.cosine_similarity(x[mask], y[mask])).mean()
    assert m["recovery_cosine"] == pytest.approx(cosine)


@QUICK
@given(SEEDS, st.integers(1, 6))
def test_frechet_is_the_formula_with_scipys_matrix_root(seed, d):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(40, d)) @ rng.normal(size=(d, d)), rng.normal(size=(50, d)) + 1
    a, b = np.atleast_2d(np.cov(x.T)), np.atleast_2d(np.cov(y.T))
    root = linalg.sqrtm(a @ b)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b) - 2 * np.trace(root).real
    assert metrics.frechet_distance(x, y) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@QUICK
@given(SEEDS)
def test_spectral_distance_of_ascending_spectra_is_scipys_wasserstein(seed):
    rng = np.random.default_rng(seed)
    a, b = np.sort(rng.uniform(-1, 1, 12)), np.sort(rng.uniform(-1, 1, 12))
    assert metrics.spectral_distance(a, b) == pytest.approx(stats.wasserstein_distance(a, b))
    padded = metrics.spectral_distance(np.append(a, 9), np.append(b, -9), np.append(np.ones(12, bool), False))
    assert padded == pytest.approx(metrics.spectral_distance(a, b))


def test_crps_is_its_definition_over_all_pairs():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 30)), rng.normal(size=30)
    pairs = abs(x[:, None] - x[None]).sum((0, 1)) / (6 * 5)
    assert metrics.sample_metrics(x, y)["crps"] == pytest.approx((abs(x - y).mean(0) - pairs / 2).mean())


def test_samples_that_do_not_count_change_nothing():
    rng = np.random.default_rng(0)
    x, y, mask = rng.normal(size=(6, 30)), rng.normal(size=30), rng.random(30) < .5
    spoilt = x.copy()
    spoilt[:, ~mask] = np.nan
    assert metrics.sample_metrics(spoilt, y, mask) == metrics.sample_metrics(x, y, mask)
    assert np.isnan(metrics.sample_metrics(x, y, np.zeros(30, bool))["crps"])


@QUICK
@given(SEEDS, st.integers(2, 8))
def test_paired_p_is_the_share_of_sign_patterns(seed, n):
    rng = np.random.default_rng(seed)
    delta = rng.normal(.5, 1, n)
    signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    share = (abs(signs @ delta) >= abs(delta.sum()) * (1 - 1e-12)).mean()
    assert benchmark.paired_difference(delta)["p"] == pytest.approx(share)


def test_interval_is_scipys_percentile_bootstrap_or_students_of_few_pairs():
    delta = np.random.default_rng(0).normal(1, 2, benchmark.MANY)
    ours = benchmark.paired_difference(delta)
    theirs = stats.bootstrap((delta,), np.mean, method="percentile", n_resamples=9999, rng=1).confidence_interval
    assert ours["low"] == pytest.approx(theirs.low, abs=.06) and ours["high"] == pytest.approx(theirs.high, abs=.06)
    few = benchmark.paired_difference(delta[1:])
    assert (few["low"], few["high"]) == pytest.approx(stats.t.interval(.95, len(delta) - 2, delta[1:].mean(), stats.sem(delta[1:])))
    same = benchmark.paired_difference([.5, .5, .5])
    assert same["low"] == same["high"] == .5


@QUICK
@given(SEEDS, st.integers(1, 8))
def test_holm_is_its_definition(seed, m):
    p = np.random.default_rng(seed).random(m) ** 2
    expected = [max(min(1, (m - j) * q) for j, q in enumerate(np.sort(p)) if q <= value) for value in p]
    np.testing.assert_allclose(benchmark.holm(p), expected)
    assert (benchmark.holm(p) >= p).all()
