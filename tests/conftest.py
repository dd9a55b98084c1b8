"Files with slow tests come first, then those with most tests: `-n 2 --dist loadfile` is then not left with a long one at its end."
from collections import Counter


def pytest_collection_modifyitems(items):
    slow, all_ = Counter(i.path for i in items if i.get_closest_marker("slow")), Counter(i.path for i in items)
    items.sort(key=lambda i: (-slow[i.path], -all_[i.path]))
