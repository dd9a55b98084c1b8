"Files with slow tests come first, then those with most tests: `-n 2 --dist loadfile` is then not left with a long one at its end."
import os
from collections import Counter

os.environ.setdefault("OMP_NUM_THREADS", "1") # sums of several threads differ in their last bits from those of the programs that tests start
os.environ["HF_HUB_OFFLINE"] = "1" # before anything reads it: no test asks the Hub, and none waits for its answer


def pytest_collection_modifyitems(items):
    slow, all_ = Counter(i.path for i in items if i.get_closest_marker("slow")), Counter(i.path for i in items)
    items.sort(key=lambda i: (-slow[i.path], -all_[i.path]))
