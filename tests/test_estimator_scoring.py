"The scikit-learn estimator: another metric with the conversations, a word where they are withheld, and unlabelled utterances as context."
import copy
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import clone
from sklearn.metrics import accuracy_score, f1_score, get_scorer, log_loss, mean_absolute_error, r2_score
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score

from gsdnet.baselines import gsdnet
from gsdnet.estimator import ConversationClassifier, ConversationRegressor

DIMS = {"text": 3, "audio": 2}
small = partial(gsdnet, latent=8, hidden=8, width=8, denoiser_width=8, denoiser_blocks=1, n_samples=2)
make = partial(ConversationClassifier, DIMS, model=small, epochs=2, lr=1e-2, random_state=0)


@pytest.fixture(scope="module")
def talks():
    "X, labels 0..2 that the features show, conversations and speakers."
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 60)
    return rng.standard_normal((60, 5)) + 2 * np.eye(3, 5)[y], y, np.repeat(np.arange(15), 4), np.tile([0, 1], 30)


@pytest.fixture(scope="module")
def fitted(talks): return make().fit(*talks)


def routed(model):
    wants = dict(groups=True, speakers=True)
    return model.set_fit_request(**wants).set_score_request(**wants).set_predict_request(**wants).set_predict_proba_request(**wants)


@pytest.fixture
def asked(monkeypatch):
    "The `groups` of every prediction."
    seen, answer = [], ConversationClassifier._answer

    def spied(self, X, metadata, name):
        seen.append(metadata["groups"])
        return answer(self, X, metadata, name)
    monkeypatch.setattr(ConversationClassifier, "_answer", spied)
    return seen


def test_the_metric_of_the_estimator_has_the_conversations(talks, fitted):
    X, y, g, s = talks
    label, p, weight = fitted.predict(X, g, s), fitted.predict_proba(X, g, s), np.linspace(0, 1, 60)
    scored = lambda scoring, **more: copy.copy(fitted).set_params(scoring=scoring).score(X, y, g, s, **more)
    assert fitted.scoring is None and fitted.score(X, y, g, s) == accuracy_score(y, label) == scored("accuracy")
    assert scored("f1_macro") == f1_score(y, label, average="macro") and scored("neg_log_loss") == pytest.approx(-log_loss(y, p))
    assert scored("f1_weighted", sample_weight=weight) == pytest.approx(f1_score(y, label, average="weighted", sample_weight=weight))
    assert scored(lambda judge, X, y: judge.predict_proba(X)[:, 0].sum()) == pytest.approx(p[:, 0].sum())
    assert clone(make(scoring="f1_macro")).scoring == "f1_macro"


def test_a_metric_that_is_none_is_refused_before_training(talks):
    X, y, g, _ = talks
    for scoring, words in (("f1_makro", "not a valid scoring"), (f1_score, "make_scorer"), (["f1_macro"], "name of one of scikit-learn's scorers"), (3, "got scoring=3")):
        with pytest.raises(ValueError, match=words): make(scoring=scoring).fit(X, y, g)
    with pytest.raises(ValueError, match="inconsistent"): make(epochs=1).fit(X, y, g).score(X, y[:-1], g)


def test_cross_validation_and_searches_by_the_estimators_own_metric(talks, asked):
    "With the tool's own `scoring` the groups are gone, which is said."
    X, y, g, s = talks
    how = dict(cv=GroupKFold(2), params=dict(groups=g, speakers=s))
    with sklearn.config_context(enable_metadata_routing=True), warnings.catch_warnings():
        warnings.simplefilter("error")
        by_estimator = cross_val_score(routed(make(scoring="f1_macro")), X, y, **how)
        assert len(asked) == 2 and not any(groups is None for groups in asked)
        search = GridSearchCV(routed(make(scoring="f1_macro")), {"epochs": [1]}, cv=GroupKFold(2)).fit(X, y, groups=g, speakers=s)
        assert len(asked) == 4 and not any(groups is None for groups in asked)
        assert search.best_estimator_.predict(X, groups=g, speakers=s).shape == (60,)
        with pytest.raises(TypeError): search.predict(X, groups=g, speakers=s) # what the page says of scikit-learn
        asked.clear()
        warnings.simplefilter("default")
        with pytest.warns(UserWarning, match="trained with groups.*the estimator's own `scoring`"): cross_val_score(routed(make()), X, y, scoring="f1_macro", **how)
    assert asked == [None, None] and len(by_estimator) == 2


def test_groups_withheld_are_warned_of_once_and_only_where_they_are(talks, fitted):
    X, y, g, s = talks
    alone = make(epochs=1).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.predict(X, g, s), fitted.score(X, y, g, s), fitted.predict(X[:1]), fitted.predict(X, np.arange(60)), alone.predict(X), alone.score(X, y)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2): fitted.predict(X), fitted.predict(X[:9]), get_scorer("f1_macro")(fitted, X, y)
    assert [w.category for w in said] == [UserWarning]


def spellings(y, gone):
    "The same labels with some gone, as people write it."
    yield np.where(gone, None, y)
    yield [None if no else int(label) for no, label in zip(gone, y)]
    yield np.where(gone, np.nan, y)
    yield pd.Series(y).where(~gone)
    yield pd.Series(y, dtype="Int64").where(~gone)
    yield np.where(gone, -1, y)
    yield np.where(gone, -1.0, y)
    yield np.where(gone, -1, y).tolist()


def test_unlabelled_utterances_are_context(talks):
    "One model from every spelling; no class; judged nowhere; and yet there as context."
    X, y, g, s = talks
    gone = np.random.default_rng(1).random(60) < 0.4
    models = [(make().fit(X, labels, g, s), labels) for labels in spellings(y, gone)]
    first = models[0][0].predict_proba(X, g, s)
    right = (models[0][0].predict(X, g, s) == y)[~gone]
    for model, labels in models:
        assert model.classes_.tolist() == [0, 1, 2] and np.array_equal(model.predict_proba(X, g, s), first)
        assert model.score(X, labels, g, s) == right.mean() == model.score(X, labels, g, s, sample_weight=np.where(gone, 99, 1))
    words = np.array(["cross", "calm", "glad"], object)[y]
    for labels in (np.where(gone, None, words), [np.nan if no else w for no, w in zip(gone, words)], pd.Series(words).where(~gone)):
        model = make(epochs=1).fit(X, labels, g, s)
        assert model.classes_.tolist() == ["calm", "cross", "glad"] and 0 <= model.score(X, labels, g, s) <= 1
    cut = make().fit(X[~gone], y[~gone], g[~gone], s[~gone])
    assert not np.array_equal(cut.predict_proba(X, g, s), first)


def test_what_is_unlabelled_teaches_no_class(talks):
    "Labels never read: a single labelled conversation, batches with none, and a share held out that would have none."
    X, y, g, s = talks
    few = np.where(g < 2, y.astype(float), np.nan)
    model = make(batch_size=1, validation_fraction=0.5).fit(X, few, g, s)
    assert np.isfinite(model.predict_proba(X, g, s)).all() and model.classes_.tolist() == sorted(set(y[g < 2]))


def test_minus_one_is_a_class_where_it_can_be_nothing_else(talks):
    X, y, g, _ = talks
    fit = lambda labels: make(epochs=1).fit(X, labels, g)
    assert fit(np.where(y > 0, 1, -1)).classes_.tolist() == [-1, 1] # as scikit-learn has it
    assert fit(np.where(y > 0, 0, -1)).classes_.tolist() == [-1, 0]
    assert fit(np.array([-2, -1, 3])[y]).classes_.tolist() == [-2, -1, 3]
    assert fit(np.array(["-1", "0", "2"])[y]).classes_.tolist() == ["-1", "0", "2"]
    with pytest.raises(ValueError, match="-1, 0 and 1.*write None or NaN.*or words"): fit(y - 1)
    two = fit(np.where(y == 2, np.nan, y)) # its classes are 0 and 1: -1 is none of them
    assert two.score(X, np.where(y == 2, -1, y), g) == two.score(X, np.where(y == 2, np.nan, y), g)
    pair = fit(np.where(y > 0, 1, -1))
    assert pair.score(X, np.where(y > 0, 1, -1), g) == (pair.predict(X, g) == np.where(y > 0, 1, -1)).mean()
    for labels in ([None] * 60, np.full(60, np.nan)):
        with pytest.raises(ValueError, match="all of 60 rows"): fit(labels)
    with pytest.raises(ValueError, match="all of 60 rows"): two.score(X, np.full(60, -1), g)


def test_scores_may_be_absent(talks):
    X, y, g, s = talks
    score, gone = y - 1 + 0.1 * X[:, 3], np.random.default_rng(2).random(60) < 0.3
    meter = ConversationRegressor(DIMS, model=small, epochs=2, random_state=0).fit(X, np.where(gone, np.nan, score), g, s)
    assert np.array_equal(meter.predict(X, g, s), clone(meter).fit(X, np.where(gone, None, score), g, s).predict(X, g, s))
    found = meter.predict(X, g, s)
    assert meter.score(X, np.where(gone, np.nan, score), g, s) == pytest.approx(r2_score(score[~gone], found[~gone]))
    assert meter.set_params(scoring="neg_mean_absolute_error").score(X, score, g, s) == pytest.approx(-mean_absolute_error(score, found))
