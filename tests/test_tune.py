"""The tuning script: paired trials, a table that survives being torn, and test rows that have no say."""
import csv
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from gsdnet.data import SyntheticConversations, save_dataset

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import tune  # noqa: E402

CLOCK = ("seconds", "date", "commit")
torch.set_num_threads(1)


def save(folder, change=None):
    "A small data set of five groups, of which the last is tested on; `change` may spoil its test rows."
    data = SyntheticConversations(n_dialogues=15, length=(2, 5), seed=3).dataset()
    arrays = {name: np.array(array) for name, array in data.arrays().items()}
    arrays["group"] = arrays["dialogue_id"] % 5
    arrays["split"] = np.where(arrays["group"] == 4, 2, 0).astype(np.int8)
    test = arrays["split"] == 2
    if change: change(arrays, test, data)
    save_dataset(type(data)(arrays, data.modalities, label_names=data.label_names, name="talks"), folder)
    return folder


def rows(out): return list(csv.DictReader((out / "tuning.csv").open(encoding="utf-8", newline="")))


def outcome(out): return [{k: v for k, v in row.items() if k not in CLOCK} for row in rows(out)]


def asked(data, out, **changes):
    return Namespace(**{**dict(data=str(data), out=str(out), models="bigru,zero_fill", trials=2, epochs=1, jobs=1, folds=2, threads=1, table="tuning.csv"), **changes})


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    "A data folder, and a folder with its table."
    place = tmp_path_factory.mktemp("tune")
    assert not tune.run(asked(save(place / "talks"), place / "out"))
    return place / "talks", place / "out"


def test_trials_are_paired_and_the_first_is_the_model_as_it_stands(tuned, capsys):
    table = outcome(tuned[1])
    assert [(r["model"], r["trial"]) for r in table] == [("bigru", "0"), ("bigru", "1"), ("zero_fill", "0"), ("zero_fill", "1")]
    assert table[0]["settings"] == table[2]["settings"] == '{"epochs": 1}'
    assert table[1]["settings"] == table[3]["settings"] and set(tune.drawn({"a": [1, 2], "b": [3]}, 5)) == {"a", "b"}
    assert {r["folds"] for r in table} == {"group0 group1"} and all(len(r["scores"].split()) == 2 for r in table)
    assert not tune.run(asked(*tuned)) and [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == sorted(
        ("bigru", "zero_fill"), key=lambda m: -max(float(r["score"]) for r in table if r["model"] == m))


def test_a_torn_table_is_continued(tuned, tmp_path, monkeypatch):
    whole, text = outcome(tuned[1]), (tuned[1] / "tuning.csv").read_text()
    done, calls = text[:text.rindex(",", 0, text.rindex("zero_fill") + 60)], []
    (tmp_path / "tuning.csv").write_text(done)
    attempt = tune.attempt
    monkeypatch.setattr(tune, "attempt", lambda *args: calls.append(args[1]["trial"]) or attempt(*args))
    assert not tune.run(asked(tuned[0], tmp_path))
    assert outcome(tmp_path) == whole and calls == [1]
    monkeypatch.setattr(tune, "attempt", None)
    assert not tune.run(asked(tuned[0], tmp_path))


def spoil_labels(arrays, test, data): arrays["label"][test] = (arrays["label"][test] + 1) % data.n_classes


def spoil_features(arrays, test, data):
    for modality in data.modalities: arrays[modality][test] = 1e3 * np.random.default_rng(0).standard_normal(arrays[modality][test].shape)


@pytest.mark.parametrize("spoil", [spoil_labels, spoil_features])
def test_test_rows_have_no_say(tuned, tmp_path, spoil):
    assert not tune.run(asked(save(tmp_path / "talks", spoil), tmp_path / "out"))
    assert outcome(tmp_path / "out") == outcome(tuned[1])


def test_data_with_holes_need_no_rate_that_they_cannot_reach(tmp_path):
    "An utterance has 1.6 modalities on average: three eighths of the entries can be hidden, one half cannot."
    def holes(arrays, test, data): arrays.update(audio_present=np.arange(len(test)) % 2, visual_present=np.arange(len(test)) % 10 == 9)
    _, kit = tune.dataset(save(tmp_path / "talks", holes))
    assert kit.rates == (0., .3)


def test_development_is_whole_groups_or_the_training_split(tmp_path):
    data, _ = tune.dataset(str(save(tmp_path / "talks")))
    parts = tune.development_folds(data, None)
    assert [name for name, _ in parts] == ["group0", "group1", "group2", "group3"]
    for i, (_, part) in enumerate(parts):
        groups = [set(np.asarray(part.group)[np.asarray(part.split) == s].tolist()) for s in (0, 1, 2)]
        assert groups == [{0, 1, 2, 3} - {i}, {i}, set()]
    plain = SyntheticConversations(n_dialogues=15, length=(2, 5), seed=3).dataset()
    keys = {talk.key for talk in plain.train}
    for _, part in tune.development_folds(plain, None):
        assert {talk.key for talk in part} == keys and part.train and part.valid and not part.test


def test_a_failing_trial_is_named_and_the_others_go_on(tuned, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(tune.MODELS, "broken", lambda dataset, **options: None)
    assert tune.run(asked(tuned[0], tmp_path, models="broken,bigru", trials=1))
    assert "failed: broken, trial 0" in capsys.readouterr().err and [r["model"] for r in rows(tmp_path)] == ["bigru"]
    with pytest.raises(ValueError, match="grandmother"): tune.run(asked(tuned[0], tmp_path, models="grandmother"))


def test_a_benchmark_takes_the_best_trial_of_each_model(tuned, tmp_path, capsys):
    from gsdnet.cli import main
    data, table = tuned[0], tuned[1] / "tuning.csv"
    best = tune.best(rows(tuned[1]))
    call = ["benchmark", str(data), "--models", "bigru,zero_fill", "--rates", "0,0.3", "--seeds", "1", "--out"]
    assert main([*call, str(tmp_path / "tuned"), "--tuned", str(table)]) == 0
    configs = {r["config"]["model"]: r["config"] for r in map(tune.json.loads, (p.read_text() for p in (tmp_path / "tuned/records").glob("*.json")))}
    for model, row in best.items():
        for name, value in tune.json.loads(row["settings"]).items():
            found = configs[model]["training"] if name in configs[model]["training"] else configs[model]
            assert found[name] == value
    assert main([*call, str(tmp_path / "few"), "--tuned", str(table), "--epochs", "1"]) == 0
    capsys.readouterr()
    for wrong, why in [(["--tuned", str(tmp_path / "none.csv")], "no table of trials"), (["--tuned", str(table), "--models", "transformer"], "no trial of transformer")]:
        assert main([*call, str(tmp_path / "no"), *wrong]) == 2 and why in capsys.readouterr().err
    assert main(["benchmark", str(data), "synthetic", "--tuned", str(table), "--out", str(tmp_path / "no")]) == 2 and "expected one with --tuned" in capsys.readouterr().err
