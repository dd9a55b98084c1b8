"""Noise on edges against noise on eigenvalues, on the conversations of a data set: their structure, and the graph of each modality."""
import torch
from compare import dataset, keep, options, row

from gsdnet.conversation import conversation_weights
from gsdnet.data import standardization
from gsdnet.diffusion import similarity
from gsdnet.spectrum import normalize
from gsdnet.stability import compare_noises

LEAST = 20 # utterances; shorter dialogues are complete graphs, or nearly


def operators(talks, name=None):
    "Normalised adjacency of each dialogue, reweighed by the similarity of a modality's standardised features if one is named."
    if name is None: return [normalize(conversation_weights(t.speaker)) for t in talks]
    mean, std = standardization(talks)[name]
    alike = [similarity(((t[name] - mean) / std).double()) for t in talks]
    return [normalize(conversation_weights(t.speaker) * s.exp()) for t, s in zip(talks, alike)]


def main():
    chosen = options(__doc__)
    data, _ = dataset(chosen.data)
    talks = [t for t in data.train if t.num_nodes >= LEAST][:8 if chosen.quick else None]
    origin = {k: v for k, v in row(chosen, "", "", "", 0.0, "").items() if k in ("data", "date", "commit")}
    rows = []
    for name in (None, *data.modalities):
        frame = compare_noises(operators(talks, name), (0.03, 0.1, 0.3), draws=1 if chosen.quick else 5)
        measures = [c for c in frame.columns if c not in ("held equal", "sigma", "noise", "graph", "draw")]
        by_graph = frame.groupby(["held equal", "sigma", "noise", "graph"], sort=False)[measures].mean()
        cells = by_graph.groupby(["held equal", "sigma", "noise"], sort=False)
        for key, mean in cells.mean().iterrows():
            values = {m: round(float(mean[m]), 4) for m in measures} | {f"{m} sd": round(float(cells.std().loc[key, m]), 4) for m in measures}
            rows.append({"graph": name or "structure", **dict(zip(("held equal", "sigma", "noise"), key)), **values, "dialogues": len(talks), **origin})
        print(f"{data.name}, {name or 'structure'}: {len(talks)} dialogues")
    keep(chosen, rows, "stability.csv", ("data", "graph", "held equal", "sigma", "noise"))


if __name__ == "__main__": main()
