"""The script behind the page When recovery pays: its batched closed form against the law's own, and what its models are shown."""
import sys
from pathlib import Path

import pytest
import torch

from gsdnet.conversation import AddSpectrum, ConversationBatch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import when_recovery_pays as when  # noqa: E402
from compare import as_made, known_tasks  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in dict(MOST=12, TEST=6).items(): monkeypatch.setattr(when, name, value)
    monkeypatch.setitem(when.GRID, "base", (when.Setting(dialogues=8, steps=2), ("known", "zero_fill", "gsdnet", "best")))


@pytest.fixture
def shown():
    law, data = when.conversations(when.Setting(dialogues=8), 1)
    mask = when.masks(data, 1)["random 0.5"]
    talks = [AddSpectrum()(c) for c in data.test]
    return law, data, mask, ConversationBatch.collate(talks, [mask[c.rows] for c in talks])


def hidden(batch, law): return ~batch.observed.repeat_interleave(torch.tensor(law.dims), -1) & batch.valid[..., None]


def test_the_batched_closed_form_is_the_laws(shown):
    law, data, mask, batch = shown
    form, holes = when.Law(law), hidden(batch, law)
    mean, answers = form.features(batch)[0], form.answers(batch, 4000).split(batch.lengths)
    draws = form.features(batch, 4000, torch.Generator().manual_seed(0))
    for i, c in enumerate(data.test):
        n, (expected, cov) = c.num_nodes, law.posterior(c, mask[c.rows])
        open_ = holes[i, :n]
        torch.testing.assert_close(mean[i, :n][open_], expected[open_], atol=1e-9, rtol=1e-9)
        # standard errors of a mean and of a covariance of 4000 draws, six of them
        found, sd = draws[:, i, :n][:, open_], cov.diag().sqrt()
        assert ((found.mean(0) - expected[open_]).abs() < 6 * sd / 4000**.5).all()
        assert ((found.T.cov() - cov).abs() < 6 * (cov.square() + torch.outer(sd, sd).square()).sqrt() / 4000**.5).all()
        # both integrate by 4000 draws: the difference of two shares has a deviation of at most (2 / 4 / 4000)^.5
        assert (answers[i] - law.recognise(c, mask[c.rows], n_samples=4000)).abs().max() < 6 * (.5 / 4000)**.5


def test_settings_take_away_what_they_say_and_leave_the_test_alone():
    law, base = when.conversations(when.Setting(dialogues=8), 1)
    _, fewer = when.conversations(when.Setting(dialogues=4), 1)
    _, few = when.conversations(when.Setting(dialogues=8, labels=2), 1)
    _, holes = when.conversations(when.Setting(dialogues=8, gone=.3), 1)
    assert [len(d.train) for d in (base, fewer, few, holes)] == [8, 4, 8, 8] and all(len(d.test) == 6 for d in (base, fewer, few, holes))
    for other in (fewer, few, holes):
        for a, b in zip(base.test, other.test): assert torch.equal(a.text, b.text) and torch.equal(a.y, b.y) and bool(b.present.all())
    assert sum(bool((c.y >= 0).any()) for c in few.train) == 2
    gone = 1 - torch.cat([c.present for c in holes.train]).double().mean()
    assert abs(gone - .3) < .01
    test = torch.cat([c.rows for c in base.test])
    for name, mask in when.masks(base, 1).items(): assert torch.equal(mask[test], when.masks(holes, 1)[name][test])


def test_the_best_recovery_is_the_law_encoded_and_keeps_what_is_observed(shown):
    law, data, mask, batch = shown
    net = when.untrained("best", data, law).eval()
    net.fit_standardization(data.train)
    z, generators = net.encode(batch), [torch.Generator().manual_seed(i) for i in range(6)]
    found = net.recover(batch, n_samples=3, generator=generators, z=z)
    seen = batch.observed[..., None].expand_as(z).flatten(-2)
    assert torch.equal(found.values[:, seen], z.flatten(-2)[seen].expand(3, -1))
    x = when.Law(law).features(batch, 3, [torch.Generator().manual_seed(i) for i in range(6)]).float()
    text = net.encoders["text"]((x[..., :8] - net.mean_text) / net.std_text)
    gone = ~batch.observed[..., 0] & batch.valid
    torch.testing.assert_close(found.values.unflatten(-1, z.shape[-2:])[..., 0, :][:, gone], text[:, gone])


def test_what_is_shown_as_observed_changes_nothing_where_nothing_is_missing(shown):
    law, data, mask, _ = shown
    twin = when.untrained("zero_fill", data, law).eval()
    twin.fit_standardization(data.train)
    for other in (when.beside(twin, when.ShownAsObserved, ()), when.beside(twin, when.BestShownAsObserved, (law, True)),
                  when.beside(twin, when.ZerosShownAsObserved, ())):
        assert torch.equal(torch.tensor(twin.predict(data.test).probabilities), torch.tensor(other.predict(data.test).probabilities))
        assert not torch.equal(torch.tensor(twin.predict(data.test, mask).probabilities), torch.tensor(other.predict(data.test, mask).probabilities))


def test_a_denoiser_trained_beside_a_twin_leaves_the_twin_as_it_is(shown):
    law, data, _, _ = shown
    twin = when.untrained("zero_fill", data, law)
    twin.fit_standardization(data.train)
    before = {k: v.clone() for k, v in twin.state_dict().items()}
    made = when.trained(when.beside(twin, when.ShownAsObserved, ()), data, 2, 0)
    moved = {k.split(".")[0] for k, v in made.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"diffusion"}


@pytest.mark.parametrize("name, kinds", [("known", 6), ("zero_fill", 6), ("gsdnet", 1), ("best", 1)])
def test_rows_of_a_task(name, kinds):
    rows = when.task("base", 1, name)
    assert len(rows) == kinds * len(when.PROTOCOLS) and all(len(r) + 1 == len(when.COLUMNS) for r in rows)
    assert {r[4] for r in rows} == set(when.PROTOCOLS) and all(0 <= float(r[5]) <= 100 for r in rows)
    assert when.task("base", 1, name) == rows


def test_a_table_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["when", "--out", str(tmp_path), "--only", "base", "--seeds", "1", "--list"])
    assert when.main() == 0 and capsys.readouterr().out.splitlines()[-1] == "4 tasks"
    (tmp_path / "synthetic_when.csv").write_text(",".join(when.COLUMNS) + "\nbase,0,known,optimum,random 0,70,0.5,,,abc\n")
    assert when.main() == 0 and capsys.readouterr().out.splitlines()[-1] == "3 tasks"
    monkeypatch.setattr(sys, "argv", ["when", "--only", "bass"])
    with pytest.raises(SystemExit, match="bass"): when.main()


def test_rows_are_added_as_tasks_end_and_a_failed_one_is_told(tmp_path, capsys):
    path, good, bad = tmp_path / "new" / "t.csv", ([["b", 1], ["a", 2]],), (3,)
    assert known_tasks(path, 1) == set() and as_made(path, ["name", "n", "commit"], sorted, [good, bad], 1, "abc") == 1
    assert as_made(path, ["name", "n", "commit"], sorted, [([["c", 3]],)], 2, "def") == 0
    assert path.read_text().splitlines() == ["name,n,commit", "a,2,abc", "b,1,abc", "c,3,def"] and known_tasks(path, 1) == {("name",), ("a",), ("b",), ("c",)}
    assert "(3,) failed: TypeError" in capsys.readouterr().err
