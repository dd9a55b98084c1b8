"""Processor time of one utterance answered online: the page Answers says what was measured with it.

    python benchmarks/online.py
"""
import argparse
import time

import numpy as np
import torch

from gsdnet.answers import Online
from gsdnet.data import SyntheticConversations
from gsdnet.model import GSDConfig, GSDNet


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[16, 128, 1000], help="utterances said so far")
    parser.add_argument("--repeats", type=int, default=9, help="utterances timed at each count; the median is printed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = SyntheticConversations(n_dialogues=10, modalities=("text", "audio"), dims=(384, 148), noise=0.3).dataset()
    torch.manual_seed(0)
    model, random = GSDNet(GSDConfig.of(data)).eval(), np.random.default_rng(0)
    online = Online(model)
    for count in options.counts:
        # what lies before the timed utterances needs no answer
        while online.count < count - options.repeats:
            online.past.append((online.checked({"text": random.normal(size=384)}), online.count % 2))
            online.count += 1
        spent = []
        for i in range(options.repeats):
            seen = {"text": random.normal(size=384)} | ({"audio": random.normal(size=148)} if i % 2 else {})
            begin = time.process_time()
            online.add(seen, online.count % 2)
            spent.append(time.process_time() - begin)
        print(f"{online.count:6d} utterances so far, {online.count - online.start:4d} read: {1e3 * np.median(spent):.0f} ms")


if __name__ == "__main__": main()
