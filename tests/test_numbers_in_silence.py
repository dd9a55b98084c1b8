"Rules whose breach gives a wrong number in silence: found by changing one thing at a time in the exported code and running what there was of tests."
import json
import pickle
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch_geometric.data import Data

from gsdnet import answers, architectures, cli, estimator, formats, metrics, sharing, trainer
from gsdnet import benchmark as grid
from gsdnet.answers import Online, table
from gsdnet.audit import audit
from gsdnet.baselines import bigru
from gsdnet.conversation import AddSpectrum, Conversation, ConversationBatch, conversation_weights, dense_graphs, pieces
from gsdnet.data import ConversationDataset, SyntheticConversations, folds, from_frame, load_dataset, save_dataset, standardization
from gsdnet.features import extract, features
from gsdnet.formats import meld_table, read_mmgcn
from gsdnet.fusion import FusionGNN, row_normalized
from gsdnet.metrics import classification_metrics, evaluate, recovery_metrics, sentiment_metrics
from gsdnet.missing import BurstMissing, MaskKit, MixedMissing, RandomMissing, SpeakerMissing, draw_mask, realised_rate
from gsdnet.model import GSDConfig, GSDNet
from gsdnet.sampling import dpm_solver
from gsdnet.sde import CosineSDE, draw_times, dsm_loss, perturb
from gsdnet.spectrum import Spectrum, plot_spectrum
from gsdnet.trainer import TrainConfig
from gsdnet.utterances import read_table


@pytest.fixture(scope="module")
def data(): return SyntheticConversations(n_dialogues=15, length=(3, 6), seed=3).dataset()


def everything(n, m): return torch.ones(n, m, dtype=torch.bool)


# Missing


def test_mixed_hides_every_possible_number_of_entries_as_often():
    talks = torch.arange(3000).repeat_interleave(2)
    hidden = (~draw_mask(everything(6000, 2), MixedMissing(), talks, seed=0)).sum(1).view(-1, 2).sum(1) # 0, 1 or 2 of four
    assert (torch.bincount(hidden) - 1000).abs().max() < 110


def test_mixed_up_to_zero_hides_nothing():
    assert draw_mask(everything(40, 3), MixedMissing(0.), torch.arange(40) // 8, seed=0).all()


def test_a_burst_ends_with_its_dialogue():
    alone = torch.arange(60) # dialogues of one utterance
    assert draw_mask(everything(60, 2), BurstMissing(.3, 5), alone, seed=0).equal(draw_mask(everything(60, 2), BurstMissing(.3, 1), alone, seed=0))


def test_a_kit_draws_in_the_order_of_speech_wherever_rows_stand():
    order, bursts = torch.randperm(40, generator=torch.Generator().manual_seed(0)), partial(BurstMissing, length=8)
    toy = SimpleNamespace(split=torch.zeros(40).long(), dialogue=torch.zeros(40).long(), available=everything(40, 2), modalities=("a", "b"), order=torch.arange(40))
    sorted_, shuffled = (MaskKit.draw(SimpleNamespace(**vars(toy) | {"order": o}), (.3,), (0,), bursts).observed(.3, 0) for o in (torch.arange(40), order))
    assert shuffled[order].equal(sorted_)


def test_what_was_never_recorded_is_not_hidden():
    recorded = torch.tensor([[True, False], [True, True]])
    assert realised_rate(recorded, recorded) == 0 and realised_rate(torch.tensor([[True, False], [False, True]]), recorded) == 1 / 3


def test_a_kits_mask_is_a_copy(data):
    kit = MaskKit.draw(data, (.3,), (0,))
    before = kit.hash
    kit.observed(.3, 0).fill_(True)
    assert kit.hash == before


# Data


def test_folds_have_as_many_utterances_not_dialogues():
    talk = np.repeat(np.arange(5), [8, 4, 4, 4, 4])
    whole = ConversationDataset(dict(text=np.ones((24, 2), np.float32), dialogue_id=talk, position=np.arange(24), split=np.zeros(24, int)))
    assert [int((part.split == 2).sum()) for _, part in folds(whole, 3)] == [8, 8, 8]


def test_a_row_with_one_empty_cell_was_not_recorded():
    frame = pd.DataFrame(dict(talk=[0, 0, 0], a=[1., np.nan, 2.], b=[1., 3., np.nan], c=[1., 2., 3.]))
    found = from_frame(frame, {"text": ["a", "b"], "audio": ["c"]}, dialogue="talk")
    assert found.available.tolist() == [[True, True], [False, True], [False, True]] and not found[0].text[1:].any()


def test_a_tables_groups_make_the_folds():
    frame = pd.DataFrame(dict(talk=list("aabbcc"), session=[7, 7, 8, 8, 9, 9], x=np.arange(6.)))
    found = from_frame(frame, {"text": ["x"]}, dialogue="talk", group="session")
    assert found.group.tolist() == [0, 0, 1, 1, 2, 2] and [name for name, _ in folds(found)] == ["group0", "group1", "group2"]


def test_the_task_is_kept_with_the_folder(data, tmp_path):
    scored = data.arrays() | {"score": np.zeros(data.n_utterances, np.float32)}
    for task in ("classification", "regression"):
        save_dataset(ConversationDataset(scored, data.modalities, label_names=data.label_names, task=task), tmp_path)
        assert load_dataset(tmp_path).task == task


def test_conversations_carry_the_columns_of_their_rows():
    whole = SyntheticConversations(n_dialogues=6, length=(3, 6), with_score=True).dataset()
    shuffle = np.random.default_rng(0).permutation(whole.n_utterances)
    mixed = ConversationDataset({k: x[shuffle] for k, x in whole.arrays().items()}, whole.modalities, label_names=whole.label_names)
    for talk in mixed:
        assert all(torch.equal(talk[name], getattr(mixed, column)[talk.rows]) for name, column in (("speaker", "speaker"), ("y", "y"), ("score", "score"), ("position", "position")))
        assert torch.equal(talk.present, mixed.available[talk.rows]) and (mixed.dialogue[talk.rows] == mixed.dialogue[talk.rows[0]]).all()


def test_no_score_is_another_content_than_a_score_of_zero(data):
    of = lambda first: ConversationDataset(data.arrays() | {"score": np.array([first] + [1.] * (data.n_utterances - 1), np.float32)}, data.modalities, label_names=data.label_names)
    assert of(np.nan).hash != of(0.).hash


def test_a_constant_column_is_not_magnified():
    frame = pd.DataFrame(dict(talk=[0] * 7, a=[1000.] * 6 + [1000.0001], b=np.arange(7.))) # apart by a step of single precision
    mean, std = standardization(list(from_frame(frame, {"text": ["a", "b"]}, dialogue="talk")))["text"]
    assert std.tolist() == [1., 2.]


def test_the_law_of_speakers_is_as_said():
    found = SyntheticConversations(n_dialogues=60, n_speakers=(2, 3)).dataset()
    changes = torch.cat([(c.speaker.diff() != 0) for c in found]).double().mean()
    assert abs(changes - .7) < .06 and all(len({int(found.dialogue[r]) for r in (found.speaker == s).nonzero()}) == 1 for s in found.speaker.unique())


def test_the_seed_draws_the_conversations_too():
    one, other = (SyntheticConversations(n_dialogues=10, seed=seed).dataset() for seed in (0, 1))
    assert [c.num_nodes for c in one] != [c.num_nodes for c in other]


def test_the_ideal_recogniser_knows_of_the_annotators_noise():
    law = SyntheticConversations(n_dialogues=3, length=(3, 3), label_noise=100.)
    assert (law.recognise(law.dataset()[0]) - .25).abs().max() < .05


# Metrics


class Asked:
    "A perfect recogniser that notes what it is asked, and answers backwards."
    config = SimpleNamespace(task="classification")
    def __init__(self, data): self.y, self.asked = data.y.numpy(), []

    def predict(self, talks, observed=None, *, seed=0):
        self.asked.append((observed, seed))
        rows = np.concatenate([c.rows for c in talks])[::-1].copy()
        return SimpleNamespace(rows=rows, probabilities=np.eye(4)[self.y[rows]], seconds=2.)

    def recovery_error(self, talks, observed=None, *, seed=0):
        self.asked.append((observed, seed))
        return {}


def test_a_model_is_judged_under_the_mask_and_seed_that_were_asked_for(data):
    model, mask = Asked(data), MaskKit.draw(data, (.4,), (0,)).observed(.4, 0).numpy()
    mask[data.split != 2] = True
    found, test = evaluate(model, data, observed=mask, seed=7), data.split == 2
    assert [seed for _, seed in model.asked] == [7, 7] and all(seen is mask for seen, _ in model.asked)
    assert found["accuracy"] == 1 and found["realised_rate"] == realised_rate(torch.as_tensor(mask)[test]) > .3
    assert found["utterances_per_second"] == int(test.sum()) / 2


def test_an_answer_of_zero_is_not_positive():
    assert sentiment_metrics([1., -1., -1.], [1., 0., 0.])["accuracy"] == 1


def test_a_grade_is_of_seven_however_far_an_answer_goes():
    assert sentiment_metrics([3., -3., 1.], [3.7, -9., 1.2])["acc7"] == 1


def test_a_class_that_does_not_occur_lowers_no_mean_over_classes():
    sure = np.eye(3)[[0, 0, 1, 2]]
    found = classification_metrics([0, 0, 1, 1], sure)
    assert found["uar"] == .75 and found["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)


def test_the_unit_of_features_does_not_matter_to_their_cosine():
    a, b = np.random.default_rng(0).normal(size=(2, 5, 4))
    of = lambda unit: recovery_metrics(unit * a, unit * b, np.ones(5, bool))["recovery_cosine"]
    assert of(1e-4) == pytest.approx(of(1.))


# Theory


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_of_two_eigenvalues_as_large_the_positive_is_kept(precision):
    spec = Spectrum(torch.tensor([-1., .2, 1.]).to(precision), torch.eye(3).to(precision))
    assert spec.truncate(1).values.tolist() == [1.] and spec.truncate(2).values.tolist() == [-1., 1.]


def test_padding_is_not_drawn():
    line = plot_spectrum(Spectrum(torch.tensor([.5, 1., 0.]), torch.eye(3)[:, :2] @ torch.eye(2, 3))).lines[0]
    assert line.get_ydata().tolist() == [.5, 1.]


def test_the_solver_extrapolates_by_the_ratio_of_its_steps():
    sde, x, last = CosineSDE(), torch.tensor([[.3, -1.]], dtype=torch.float64), None
    times, truth = torch.tensor([.9, .7, .3, .2], dtype=torch.float64), lambda x, t: torch.ones_like(x) * (3 * t).sin()
    a, s, y = sde.alpha(times), sde.sigma(times), x
    log = (a / s).log()
    for i in range(3): # Lu et al. 2022, algorithm 2
        h, d = log[i + 1] - log[i], truth(x, times[i])
        if i: d = d + h / (2 * (log[i] - log[i - 1])) * (d - truth(x, times[i - 1]))
        y = s[i + 1] / s[i] * y - a[i + 1] * torch.expm1(-h) * d
    torch.testing.assert_close(dpm_solver(truth, x, times, sde=sde), y)


def test_times_are_uniform_but_for_those_at_the_end():
    t = draw_times(torch.zeros(20000), t_max=.5, at_end=.3, generator=torch.Generator().manual_seed(0))
    rest = t[t < .5]
    assert t.max() == .5 and abs(len(rest) / 20000 - .7) < .02 and rest.min() < .001 and abs(rest.mean() - .25) < .005


def test_a_generator_is_the_only_source_of_noise():
    seeded, x = lambda: torch.Generator().manual_seed(0), torch.ones(4, 3)
    for draw in (lambda g: draw_times(x, generator=g), lambda g: CosineSDE().sample_prior(x, g), lambda g: perturb(CosineSDE(), x, torch.ones(4) / 2, g)[0],
                 lambda g: dsm_loss(CosineSDE(), lambda x, t: x * t[:, None], x, generator=g)):
        assert torch.equal(draw(seeded()), draw(seeded()))


# Conversations


def talk(speaker, **columns):
    n = len(speaker)
    return Conversation.build({"text": torch.ones(n, 2), "audio": torch.ones(n, 3)}, speaker=torch.tensor(speaker), **columns)


def test_padding_has_no_score():
    batch = ConversationBatch.collate([talk([0, 1, 0], score=torch.ones(3)), talk([0], score=torch.ones(1))])
    assert batch.score.isnan().tolist() == [[False] * 3, [False, True, True]]


def test_who_speaks_is_compared_in_pairs():
    same = dense_graphs([talk([4, 7, 7]), talk([0])]).same_speaker
    assert same[0].tolist() == [[True, False, False], [False, True, True], [False, True, True]] and same[1].sum() == 1 == same[1, 0, 0]


def test_a_spectrum_is_that_of_its_settings():
    one = AddSpectrum(window=2, decay=1., cross_speaker=.3)(talk([0, 1, 0, 1, 1]))
    torch.testing.assert_close(one.weights, conversation_weights(one.speaker, window=2, decay=1., cross_speaker=.3).float())
    ring = Data(edge_index=torch.tensor([[0, 1, 2, 3, 1, 2, 3, 0], [1, 2, 3, 0, 0, 1, 2, 3]]), num_nodes=4)
    assert AddSpectrum(k=2)(ring).eigenvalues.tolist() == pytest.approx([-1, 1])


def test_a_mask_cannot_show_what_was_never_recorded():
    holed = talk([0, 1], present=torch.tensor([[True, False], [True, True]]))
    assert ConversationBatch.collate([holed], [everything(2, 2)], targets=True).observed.tolist() == [[[True, False], [True, True]]]


def test_a_stretch_keeps_its_places():
    part = talk([0, 1, 0, 1], position=torch.tensor([2, 5, 6, 9]), y=torch.arange(4)).slice(1, 3)
    assert part.position.tolist() == [5, 6] and part.rows.tolist() == part.y.tolist() == [1, 2]


@pytest.fixture
def fused():
    "What went into the parts of a fusion network, everything observed: by name, and the graph."
    torch.manual_seed(0)
    graph, net, went = dense_graphs([talk([0, 1, 1, 0])]), FusionGNN(2, 4, 8, 3).eval(), {}
    for name, part in (("gate", net.gate), ("context", net.context), ("graph", net.graph), ("mix", net.graph.mix), ("head", net.head)):
        part.register_forward_hook(lambda _, given, out, name=name: went.update({name: (*given, out)}))
    net(torch.randn(1, 4, 2, 4), everything(4, 2)[None], None, torch.zeros(1, 4, 2), graph)
    return went, graph


def test_the_gate_is_told_shares(fused):
    torch.testing.assert_close(fused[0]["gate"][2], torch.ones(1, 4, 2))


def test_own_turns_and_those_of_others_are_told_apart(fused):
    went, graph = fused
    q, step, smooth, same, other = went["mix"][0].chunk(5, -1)
    for part, mine in ((same, graph.same_speaker), (other, ~graph.same_speaker)): torch.testing.assert_close(part, row_normalized(graph.weights * mine) @ q)
    torch.testing.assert_close(step, graph.operator @ q)


def test_states_before_the_context_reach_the_graph_and_the_head(fused):
    (h, _, context), (c, *_), (both, _) = (fused[0][name] for name in ("context", "graph", "head"))
    torch.testing.assert_close(c, h + context)
    torch.testing.assert_close(both[..., 8:], h)


# Answers


def test_online_asks_with_its_seed_and_options():
    asked, config = [], SimpleNamespace(max_length=4, margin=1, dims={"text": 2})
    def predict(talks, **how):
        asked.append((talks[0].key, how))
        raise InterruptedError
    online = Online(SimpleNamespace(config=config, predict=predict), key="call", seed=7, n_samples=3)
    for online.count, before in ((0, 0), (5, 4)):
        online.past.extend([({"text": torch.ones(2)}, [True]), 0] for _ in range(before))
        with pytest.raises(InterruptedError): online.add({"text": np.ones(2)})
    assert asked[0] == ("call", dict(seed=7, n_samples=3)) and asked[1][0] == f"call[{pieces(6, 4, 1)[-1].start}:6]"


def test_lines_say_the_places_of_the_data():
    found = SimpleNamespace(rows=np.array([5, 3]), score=None, label=np.array([0, 1]), probabilities=np.eye(2), uncertainty=np.zeros(2), within=np.array([.1, .2]), between=np.array([.3, .4]),
                            modalities=("text",), recovered=np.zeros((2, 1), bool))
    model = SimpleNamespace(config=SimpleNamespace(label_names=("calm", "angry")))
    lines = table(model, [talk([0, 1], position=torch.tensor([4, 9]), key="a", rows=torch.tensor([5, 3]))], found)
    assert lines["position"].tolist() == [4, 9] and lines["row"].tolist() == [5, 3] and lines["expected_entropy"].tolist() == [.1, .2] and lines["mutual_information"].tolist() == [.3, .4]


def test_a_table_of_other_conversations_is_refused(data):
    model = bigru(data, width=8).eval()
    with pytest.raises(ValueError, match="in their order"): table(model, data.train[::-1], model.predict(data.train))


# Audit


def said(check, **changes):
    "What an audit says under a check of some changed conversations: of 45 dialogues, each of 8 utterances of its own two speakers."
    whole = SyntheticConversations(n_dialogues=45, length=(8, 8), n_speakers=(2, 2)).dataset()
    arrays = whole.arrays()
    for name, change in changes.items(): arrays[name] = change(arrays)
    found = audit(ConversationDataset(arrays, whole.modalities, label_names=whole.label_names))
    return [f.text for f in found.findings if f.check == check], found


def test_groups_are_compared_between_training_and_test():
    assert any("1 of 1 groups of test are in train too" in text for text in said("groups", group=lambda a: np.where(a["split"] == 0, 2 * (a["dialogue_id"] % 2), a["split"] % 2))[0])
    assert not said("groups", group=lambda a: np.where(a["split"] == 2, 1, 0))[0]


def test_missingness_of_a_speaker_is_told_from_a_fifth_on():
    speaker = lambda a: np.where(np.arange(360) < 20, 0, 1)
    gone = lambda n: {"text_present": lambda a: (~((np.arange(360) < n))).astype(np.uint8), "speaker": speaker} # of the twenty utterances of speaker 0
    assert any("text is missing in 30% of speaker 0" in text for text in said("missing", **gone(6))[0])
    assert not any("speaker" in text for text in said("missing", **gone(4))[0])


def test_a_class_twelve_times_as_frequent_is_told_and_nine_times_is_not():
    labels = lambda n: lambda a: np.where(a["split"] != 0, np.arange(360) % 4, np.minimum(np.arange(360) % (n + 3), 3))
    assert any("times as frequent" in text for text in said("classes", label=labels(12))[0])
    assert not any("times as frequent" in text for text in said("classes", label=labels(9))[0])


def test_rows_that_differ_in_the_sign_of_zero_are_equal():
    def twice(a):
        x = a["text"].copy()
        x[:2] = [[0., *[1.] * 7], [-0., *[1.] * 7]]
        return x
    assert any("text: 1 rows repeat" in text for text in said("duplicates", text=twice)[0])


def test_a_small_column_beside_a_large_one_is_no_constant():
    assert not said("constant columns", text=lambda a: a["text"] * np.float32([1e6] + [1e-4] * 7))[0]


def test_what_is_missing_is_counted_as_missing():
    counts = said("missing", text_present=lambda a: (np.arange(360) % 4 > 0).astype(np.uint8))[1].counts["modalities"]
    assert counts["text"]["missing"] == .25 and set(counts["text"]["missing_by"]["split"].values()) == {.25} and counts["audio"]["missing"] == 0


@pytest.mark.parametrize("split", [1, 2])
def test_near_copies_are_found_in_validation_too(split):
    def copied(m):
        def change(a):
            x = a[m].copy()
            x[np.flatnonzero(a["split"] == split)[0]] = 1.00001 * x[np.flatnonzero(a["split"] == 0)[0]]
            return x
        return change
    assert said("near leak", **{m: copied(m) for m in ("text", "audio", "visual")})[0][0].startswith("1 utterances are all but equal")


def test_classes_are_counted_split_by_split():
    counts = said("classes", label=lambda a: np.where(a["split"] == 2, 3, np.arange(360) % 3))[1].counts["splits"]
    assert counts["test"]["classes"] == {"emotion3": 72} and counts["train"]["classes"] == dict.fromkeys(["emotion0", "emotion1", "emotion2"], 72)


# Formats


def feature_pickle(folder, names, classes, more=(), who=("F", "M")):
    "A pickle of one class an utterance in each dialogue, two speakers in turn, the last dialogue for testing."
    n, rows = len(classes), lambda d: {name: [np.full(d, i + 1., np.float32) for i in range(len(classes))] for name in names}
    content = ({k: [f"{k}_{i}" for i in range(n)] for k in names}, {k: [who[i % 2] for i in range(n)] for k in names}, dict.fromkeys(names, classes), rows(3), rows(2), rows(4),
               {k: ["word"] * n for k in names}, list(names[:-1]), list(names[-1:]), *more)
    (folder / "features.pkl").write_bytes(pickle.dumps(content))
    return read_mmgcn(folder / "features.pkl")


def test_classes_that_a_file_does_not_name_have_the_published_order(tmp_path):
    iemocap = feature_pickle(tmp_path, ["Ses01F_impro01", "Ses03F_impro01"], [0, 1, 2, 3, 4, 5])
    assert iemocap.label_names == ("happy", "sad", "neutral", "angry", "excited", "frustrated") and iemocap.group.tolist() == [0] * 6 + [2] * 6
    meld = feature_pickle(tmp_path, [0, 1], [0, 1, 2, 3, 4, 5, 6], more=({0: [0] * 7, 1: [0] * 7},))
    assert meld.label_names == ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
    assert feature_pickle(tmp_path, ["a", "b"], [0, 1, 2, 3, 4, 5]).label_names == tuple("012345")


def test_actors_of_two_sessions_are_four_people(tmp_path):
    found = feature_pickle(tmp_path, ["Ses01F_impro01", "Ses01F_impro02", "Ses03F_impro01"], [0, 1])
    assert found.speaker.reshape(3, 2).tolist() == [[0, 1], [0, 1], [2, 3]] and found.utterances.speaker.iloc[-1] == "Ses03_M"


def test_dialogues_stand_in_the_order_of_their_numbers(tmp_path):
    for names in ([2, 10, 1], ["talk2", "talk10", "talk1"]):
        found = feature_pickle(tmp_path, names, [0, 1])
        assert list(dict.fromkeys(found.utterances.conversation.iloc[found.order.numpy()])) == sorted(map(str, names), key=lambda name: (len(name), name))


def test_speakers_by_a_one_hot_vector_are_told_apart(tmp_path):
    found = feature_pickle(tmp_path, ["a", "b"], [0, 1], who=([0, 0, 1], [1, 0, 0]))
    assert found.utterances.speaker.tolist() == ["speaker2", "speaker0"] * 2 and found.speaker.tolist() == [1, 0] * 2


def test_numbers_of_minus_one_zero_and_one_are_scores():
    for numbers, score, label in (([-1, 0, 1], [-1, 0, 1], [0, 1, 1]), ([-1, 0, 2], None, [-1, 0, 2]), ([0, 1, 1], None, [0, 1, 1])):
        talk = formats._Talk("gcnet", "x")
        formats._target(talk, np.array(numbers, float), "x")
        assert (talk.score, talk.label) == (score, label)


def test_places_in_meld_are_those_of_its_numbers(tmp_path):
    head, line = "Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID\n", "word,Ross,joy,0,{}\n".format
    (tmp_path / "train_sent_emo.csv").write_text(head + line(3) + line(1))
    assert meld_table(tmp_path)["position"].tolist() == [3, 1]


# Tables of utterances


class Lengths:
    "Two numbers of a text: its length and one; both zero where it says so."
    reads, files, dims = "transcript", False, 2
    def describe(self): return dict(extractor="lengths")
    def __call__(self, items): return np.array([[len(x), 1.] if x != "zero" else [0., 0.] for x in items]), [""] * len(items)


def written(folder, **columns):
    frame = pd.DataFrame(dict(speaker="A") | columns)
    frame.to_csv(folder / "talks.csv", index=False)
    return read_table(folder / "talks.csv")


def test_places_are_numbers_and_no_words(tmp_path):
    found = written(tmp_path, conversation=["a"] * 4, position=[2, 10, 1, 9], transcript=["ii", "x", "i", "ix"])
    assert found.rows.transcript.tolist() == ["i", "ii", "ix", "x"] and found.rows["at"].tolist() == ["1", "2", "9", "10"]


def test_of_two_conversations_one_is_for_testing(tmp_path):
    table = written(tmp_path, conversation=["a", "b"], position=[0, 0], transcript=["x", "y"], label=["calm", "angry"])
    assert sorted(extract(table, {"text": Lengths()}, seed=3)[0].split.tolist()) == [0, 2]


def test_scores_splits_and_zeros_stay_with_their_rows(tmp_path):
    table = written(tmp_path, conversation=list("abcd"), position=[0] * 4, transcript=["", "two", "zero", "four"], score=[2., .4, -1., 0.], split=["test", "train", "train", "valid"])
    data, rows, why = extract(table, {"text": Lengths()})
    assert data.split.tolist() == [0, 1] and data.score.tolist() == pytest.approx([.4, 0.]) and data.y.tolist() == [1, 1] and data[0].text.tolist() == [[3, 1]]
    assert why["text"] == ["empty transcript", "", "zero in every column", ""] and rows.transcript.tolist() == ["two", "four"]


def test_the_seed_of_the_split_is_said(tmp_path):
    table = written(tmp_path, conversation=list("abc"), position=[0] * 3, transcript=["x"] * 3)
    assert any("drawn with seed 7" in note for note in features(table, tmp_path / "out", {"text": Lengths()}, seed=7)["notes"])


# Benchmark


def test_a_validation_split_is_drawn_by_its_seed(data):
    bare = data.with_split(torch.where(data.split == 1, 0, data.split))
    parts = [tuple(grid.with_validation(bare, seed=seed)[0].split.tolist()) for seed in (0, 1, 2, 0)]
    assert parts[0] == parts[3] and len(set(parts)) > 1


def test_a_cell_is_trained_and_judged_by_its_own_rate_seed_and_mask(data, tmp_path, monkeypatch):
    told, judged = [], []
    monkeypatch.setattr(grid, "fit", lambda dataset, **how: told.append(how) or SimpleNamespace(history={}))
    monkeypatch.setattr(grid, "evaluate", lambda model, dataset, **how: judged.append(how) or {"weighted_f1": 0.})
    for t in grid.plan(grid.Benchmark((data,), {"bigru": bigru}, tmp_path, rates=(0., .4), seeds=(3, 5), missing_rate="per_rate", config=TrainConfig(epochs=1))):
        grid.train(t, tmp_path)
        how, asked = told[-1], judged.pop()
        assert (how["missing_rate"], how["seed"], how["kit"].hash) == (t.missing_rate, t.seed, t.kit.hash) and torch.equal(how["kit"].split, t.dataset.split)
        assert not judged and asked["seed"] == t.seed and np.array_equal(asked["observed"], t.kit.observed(t.missing_rate, t.seed))
    assert [(how["missing_rate"], how["seed"]) for how in told] == [(0., 3), (.4, 3), (0., 5), (.4, 5)]


def test_rates_are_those_that_each_split_can_reach(data):
    holed = ConversationDataset(data.arrays() | {f"{m}_present": (data.split != 1).numpy() for m in ("audio", "visual")}, data.modalities, label_names=data.label_names)
    assert grid.usable_rates(None, data) == (0., .3, .5) and grid.usable_rates(None, holed) == (0.,) # of validation there is one entry an utterance
    with pytest.raises(ValueError, match="unreachable"): grid.usable_rates((.3,), holed)


def test_trainings_of_other_splits_are_others_though_nothing_is_hidden(data, tmp_path):
    ids = [grid.plan(grid.Benchmark((d,), {"bigru": bigru}, tmp_path, rates=(0.,), seeds=1))[0].id for d in (data, data.with_split(torch.where(data.split == 1, 0, data.split)), data)]
    assert ids[0] == ids[2] != ids[1]


def test_a_row_under_another_mask_is_judged_again(data, tmp_path):
    t, = grid.plan(grid.Benchmark((data,), {"bigru": bigru}, tmp_path, rates=(0., .4), seeds=1))
    rows, path = [dict(row) for row in t.wanted.values()], tmp_path / "records" / f"{t.id}.json"
    path.parent.mkdir()
    for mask, complete in ((rows[1]["test_mask"], True), ("another", False)):
        path.write_text(json.dumps({"rows": [rows[0], rows[1] | {"test_mask": mask}]}))
        assert grid.done(t, tmp_path) == complete and len(grid.judged_rows(t, tmp_path)) == 1 + complete


def test_rate_zero_is_judged_under_the_first_protocol_alone(data, tmp_path):
    t, = grid.plan(grid.Benchmark((data,), {"bigru": bigru}, tmp_path, rates=(0., .4), seeds=1, protocols=(RandomMissing, BurstMissing)))
    assert [key for key in t.wanted] == [("random/mixed", 0.), ("random/mixed", .4), ("burst(5)/mixed", .4)]


def test_tables_and_curves_stand_at_the_mean_realised_rate():
    import matplotlib.pyplot as plt
    rows = pd.DataFrame([dict(dataset="d", protocol="random/mixed", model="a", fold="split", seed=seed, rate=rate, realised_rate=rate + off, weighted_f1=.5) for rate in (.1, .3) for seed, off in ((0, .04), (1, 0.))])
    assert "| model | 0.12 | 0.32 | runs |" in grid.table(rows)
    ax = grid.plot_rates(rows.assign(weighted_f1=.5 + .1 * rows["seed"]), plt.figure().gca())
    assert ax.lines[0].get_xdata().tolist() == pytest.approx([.12, .32])
    assert np.ptp(ax.collections[0].get_paths()[0].vertices[:, 1]) == pytest.approx(.2 / 2**.5) # twice the deviation of .5 and .6
    plt.close("all")


def test_what_is_no_number_is_empty_in_a_record(data, tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "fit", lambda dataset, **how: SimpleNamespace(history={}))
    monkeypatch.setattr(grid, "evaluate", lambda model, dataset, **how: {"weighted_f1": .5, "recovery_mse": np.nan})
    t, = grid.plan(grid.Benchmark((data,), {"bigru": bigru}, tmp_path, rates=(.4,), seeds=1))
    grid.train(t, tmp_path)
    frame = grid.results(tmp_path)
    assert frame["weighted_f1"].tolist() == [.5] and frame["recovery_mse"].isna().all()


@pytest.mark.parametrize("metric, better", [("weighted_f1", True), ("uar", True), ("recovery_cosine", True), ("mae", False), ("nll", False), ("ece", False), ("recovery_mse", False)])
def test_wins_go_by_what_is_better(metric, better):
    rows = pd.DataFrame([dict(dataset="d", protocol="random/mixed", model=model, fold="split", seed=seed, rate=.3, data_hash="x", **{metric: .5 + .1 * (model == "b")}) for model in "ab" for seed in range(3)])
    found = grid.fair_table(rows, "b", metric=metric).iloc[0]
    assert (found.wins, found.losses) == ((3, 0) if better else (0, 3)) and found.difference == pytest.approx(.1 * (100 if metric in ("weighted_f1", "uar", "ece") else 1))


def test_a_protocol_is_listed_under_the_rate_of_the_whole_data_in_each_fold(data, tmp_path):
    holed = ConversationDataset(data.arrays() | {"text_present": (data.dialogue > 5).numpy()}, data.modalities, label_names=data.label_names)
    planned = grid.plan(grid.Benchmark((holed,), {"bigru": bigru}, tmp_path, folds=3, seeds=1, protocols=(SpeakerMissing(),)))
    whole = round(SpeakerMissing().nominal(holed.available, holed.dialogue, holed.speaker), 4)
    assert len(planned) == 3 and {t.views[0].rates for t in planned} == {(whole,)}


def test_comparisons_at_several_rates_are_corrected_for_their_number():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame([dict(dataset="d", protocol="random/mixed", model=model, fold="split", seed=seed, rate=rate, data_hash="x", weighted_f1=rng.random() + 2 * (model == "b") * (rate > 0))
                         for model in "ab" for seed in range(8) for rate in (0., .3, .5)])
    found, plain = grid.compare(rows, "a", "b"), grid.compare(rows, "a", "b", correct=False)
    np.testing.assert_allclose(found["p_holm"][:3], grid.holm(plain["p"][:3]))
    assert found["p_holm"].isna().tolist() == [False] * 3 + [True] and found["p_holm"][1] > found["p"][1] and "p_holm" not in plain


# Architectures


def batched(model, data):
    "Four dialogues with random masks, and their hidden entries as targets."
    model.fit_standardization(data.train)
    g, talks = torch.Generator().manual_seed(0), [model.transform(c) for c in data.train[:4]]
    return ConversationBatch.collate(talks, [(torch.rand(c.present.shape, generator=g) < .4).index_fill(1, torch.tensor([1]), True) for c in talks], targets=True)


def test_gcnet_hears_its_neighbours_and_mends_what_is_hidden_for_each_utterance(data, monkeypatch):
    heard, relations = [], architectures.time_relations
    monkeypatch.setattr(architectures, "time_relations", lambda near: heard.append(near) or relations(near))
    model = architectures.gcnet_like(data, width=8, window=2).eval()
    batch = batched(model, data)
    loss, n = model.loss(batch, batch.observed)["reconstruction"], batch.valid.shape[1]
    apart = (torch.arange(n)[:, None] - torch.arange(n)).abs()
    assert torch.equal(heard[0], (apart <= 2) & batch.valid[:, :, None] & batch.valid[:, None])
    error = (model.reconstruct(batch) - torch.cat([*model.standardized(batch.complete()).values()], -1)).square()
    each = torch.stack([e.mean(-1) for e in error.split(list(data.dims.values()), -1)], -1)
    torch.testing.assert_close(loss, each[batch.target_mask].sum() / batch.valid.sum())


def test_imders_score_is_learned_from_what_is_recorded_and_shown(data):
    model = architectures.imder_like(data, denoiser_width=8, latent=4, hidden=8, width=8)
    asked, (known, seen, clean) = [], (torch.rand(2, 6, 3, generator=torch.Generator().manual_seed(i)) for i in range(3))
    known, seen, clean = known < .8, seen < .5, clean[..., None].expand(2, 6, 3, 4) + 1
    for network in model.scores: network.conditions = lambda given, ask=network.conditions: asked.append(given) or ask(given)
    model.score_loss(clean, seen, known)
    shown = seen & known
    for m, given in enumerate(asked):
        where = (known & ~seen)[..., m]
        assert torch.equal(given, model.given(clean * shown[..., None], shown)[where]) and not given[:, 4 * m:4 * m + 4].any()


def test_imder_learns_to_recognise_from_what_is_shown_and_recovered(data, monkeypatch):
    model, went = architectures.imder_like(data, denoiser_width=8, latent=4, hidden=8, width=8, path_drop=0., n_steps=2).eval(), {}
    batch, fuse = batched(model, data), model.fuse
    monkeypatch.setattr(model, "recover", lambda batch, n_steps, n_samples, generator, z: went.update(given=z) or SimpleNamespace(values=torch.full_like(z[None], 9.).flatten(-2)))
    monkeypatch.setattr(model, "fuse", lambda z, *more: went.update(z=z) or fuse(z, *more))
    model.loss(batch, batch.observed)
    seen, z = batch.observed[..., None], model.clean(batch.complete(), model.standardized(batch.complete()))
    torch.testing.assert_close(went["given"], z * seen)
    torch.testing.assert_close(went["z"], torch.where(seen, z, 9.))


def test_mmin_weighs_its_losses_as_published(): assert (architectures.MMINLike.imagination_weight, architectures.MMINLike.cycle_weight) == (4, 2)


@pytest.mark.parametrize("name", ["gsdnet", "adjacency_noise", "imder_like"])
def test_the_noise_of_a_loss_is_its_generators(data, name):
    model = architectures.MODELS[name](data, width=8, denoiser_width=8, hidden=8, latent=8).eval() # without dropout
    batch, seeded = batched(model, data), lambda: torch.Generator().manual_seed(0)
    one, again, other = (model.loss(batch, batch.observed, g) for g in (seeded(), seeded(), torch.Generator().manual_seed(1)))
    assert all(torch.equal(one[term], again[term]) for term in one) and any(not torch.equal(one[term], other[term]) for term in one)


# scikit-learn


def test_an_estimator_hands_on_what_was_asked(monkeypatch):
    told = []
    def stop(dataset, **how):
        told.append((dataset, how))
        raise InterruptedError
    monkeypatch.setattr(estimator, "fit", stop)
    X, groups, speakers = np.arange(40.).reshape(20, 2), np.repeat(list("abcde"), 4), np.tile(list("xyyx"), 5)
    for seed in (4, 5):
        judge = estimator.ConversationClassifier(epochs=2, lr=.01, batch_size=3, missing_rate=.2, random_state=seed, validation_fraction=.4)
        with pytest.raises(InterruptedError): judge.fit(X, np.arange(20) % 2, groups, speakers, np.arange(20)[::-1])
    (dataset, how), (_, other) = told
    assert (how["config"].epochs, how["config"].lr, how["config"].batch_size, how["missing_rate"]) == (2, .01, 3, .2) and how["seed"] != other["seed"]
    assert dataset.speaker.tolist() == [0, 1, 1, 0] * 5 and dataset[0].rows.tolist() == [3, 2, 1, 0] and len(dataset.valid) == 2


# The command line


def test_train_hands_on_what_was_asked(tmp_path, monkeypatch):
    told = {}
    def stop(dataset, **how):
        told.update(how)
        raise ValueError("seen enough")
    monkeypatch.setattr(trainer, "fit", stop)
    assert cli.main(["train", "synthetic", "--run", str(tmp_path / "run"), "--missing_rate", "0.3", "--seed", "5", "--training.epochs", "3"]) == 2
    assert (told["missing_rate"], told["seed"], told["config"].epochs) == (.3, 5, 3)


def test_evaluate_prints_the_mean_over_seeds(data, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(cli, "read_run", lambda *how: None)
    monkeypatch.setattr(cli, "data_for", lambda *how: data)
    monkeypatch.setattr(metrics, "evaluate", lambda model, data, **how: asked.append(how) or {"weighted_f1": .5 + .4 * how["seed"]})
    assert cli.main(["evaluate", "run", "talks", "--rates", "0.4", "--seeds", "0,1", "--split", "valid"]) == 0
    assert "0.7000" in capsys.readouterr().out and [(how["seed"], how["split"]) for how in asked] == [(0, "valid"), (1, "valid")]
    kit = MaskKit.draw(data, (.4,), (0, 1))
    assert all(np.array_equal(how["observed"], kit.observed(.4, how["seed"])) for how in asked)


def test_predict_asks_under_the_mask_that_was_named(data, tmp_path, monkeypatch, capsys):
    asked, kit = [], MaskKit.draw(data, (.2, .4), (0, 1))
    model = SimpleNamespace(predict=lambda talks, observed, **how: asked.append((talks, observed, how)))
    monkeypatch.setattr(cli, "read_run", lambda *how: model)
    monkeypatch.setattr(cli, "data_for", lambda *how, **more: data)
    monkeypatch.setattr(answers, "table", lambda *how: pd.DataFrame({"conversation": ["a"]}))
    words = ["predict", "run", str(tmp_path), "--masks", str(kit.save(tmp_path / "masks.npz")), "--rate", "0.4", "--seed", "1", "--split", "valid", "--n_samples", "3", "--json"]
    assert cli.main(words) == 0
    (talks, observed, how), = asked
    assert how == dict(seed=1, n_samples=3) and observed.equal(kit.observed(.4, 1)) and [c.key for c in talks] == [c.key for c in data.valid]


# Sharing


def test_an_exported_score_is_the_calibrated_one():
    whole = SyntheticConversations(n_dialogues=15, length=(3, 6), with_score=True).dataset()
    model = GSDNet(GSDConfig.of(whole, width=8, denoiser_width=8, denoiser_blocks=1, hidden=8, latent=8)).eval()
    model.fit_standardization(whole.train)
    one, talk = sharing.Deterministic(model), whole.test[0]
    model.slope = .5
    half = sharing.Deterministic(model)
    seen = sharing.tensors(model, talk)
    torch.testing.assert_close(half(*seen), one(*seen) / 2)
    np.testing.assert_allclose(half(*seen)[0].detach(), model.predict([talk]).score, rtol=1e-4, atol=1e-5)
