"""The script behind "Is it so on IEMOCAP?": what a setting takes away, and that nothing of it depends on the model."""
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gsdnet.data import SyntheticConversations, save_dataset

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import foretold  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A folder like IEMOCAP's: two modalities, three sessions."
    where = tmp_path_factory.mktemp("talks") / "data"
    law = SyntheticConversations(n_dialogues=30, length=(4, 6), modalities=("text", "audio"), dims=(6, 5), noise=.3)
    data = law.dataset()
    data = type(data)(data.arrays() | {"group": (data.dialogue % 3).numpy()}, data.modalities, label_names=data.label_names, name="talks")
    return save_dataset(data, where)


def test_a_session_is_held_out_and_the_last_is_not_read_beside_others(folder):
    data = foretold.conversations(folder, foretold.Setting(dialogues=999), 1, 0)
    assert sorted(data.group.unique().tolist()) == [0, 1] and bool(((data.split == 2) == (data.group == 1)).all()) and bool((data.y >= 0).all())
    last = foretold.conversations(folder, foretold.Setting(dialogues=999), 2, 0) # unless it is the one to judge by
    assert sorted(last.group.unique().tolist()) == [0, 1, 2] and bool(((last.split == 2) == (last.group == 2)).all())


def test_fewer_are_among_the_more_and_labels_alone_leave_the_dialogues(folder):
    made = lambda **what: foretold.conversations(folder, foretold.Setting(**({"dialogues": 999} | what)), 0, 3)
    whole, few, fewer, unlabelled = made(), made(dialogues=6), made(dialogues=2), made(labels=2)
    assert len(few.train) == 6 and len(fewer.train) == 2 and len(unlabelled.train) == len(whole.train) == 10
    texts = lambda data, of: {tuple(c["text"][0].tolist()) for c in of(data)}
    train = lambda data: data.train
    assert texts(fewer, train) < texts(few, train) < texts(whole, train) == texts(unlabelled, train)
    labelled = lambda data: [c for c in data.train if bool((c.y >= 0).all())]
    assert texts(unlabelled, labelled) == texts(fewer, train) and all(bool((c.y == -1).all()) or bool((c.y >= 0).all()) for c in unlabelled.train)
    for data in (few, fewer, unlabelled): assert [c["text"].tolist() for c in data.test] == [c["text"].tolist() for c in whole.test] and all(bool((c.y >= 0).all()) for c in data.test)
    assert texts(few, train) != texts(foretold.conversations(folder, foretold.Setting(dialogues=6), 0, 4), train) # a seed draws them


def test_rows_of_a_task(folder):
    rows = foretold.task(folder, "dialogues=24", 0, 0, "zero_fill", True)
    assert [r[4] for r in rows[::len(rows) // 4]] == ["zero_fill", "zeros_shown", "gsdnet_shown", "gsdnet_mean_shown"] and all(len(r) + 1 == len(foretold.COLUMNS) for r in rows)
    whole = {r[4]: r[6:8] for r in rows if r[5] == "random 0"}
    assert len(set(map(tuple, whole.values()))) == 1 # nothing is missing, nothing is shown
    assert np.isfinite([float(r[6]) for r in rows]).all() and foretold.task(folder, "dialogues=24", 0, 0, "zero_fill", True) == rows
