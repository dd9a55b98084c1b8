"""Are the generated files what the notebooks say? Export, clean and README are made anew; nothing may change.

Compares the files before and after instead of asking git, so that it works on uncommitted work and outside a clone.
What was out of date is left rewritten: look at it and commit it.
"""
import subprocess
import sys
from pathlib import Path

from nbdev.config import get_config

CFG = get_config()
ROOT = CFG.config_path
BIN = Path(sys.executable).parent
STEPS = {
    "library exported from the notebooks": [BIN / "nbdev_export"],
    "notebooks free of execution counts and machine metadata": [BIN / "nbdev_clean"],
    "README made from nbs/index.ipynb": [sys.executable, ROOT / "tools/build_readme.py"],
}


def contents():
    "Every generated file or notebook with its bytes."
    files = [*CFG.lib_path.rglob("*.py"), *CFG.nbs_path.rglob("*.ipynb"),
             *CFG.nbs_path.glob("index_files/*"), ROOT / "README.md"]
    hidden = lambda p: any(part.startswith(".") for part in p.relative_to(ROOT).parts)
    return {str(p.relative_to(ROOT)): p.read_bytes() for p in files if p.is_file() and not hidden(p)}


def main():
    "Run each step; name the files that it changed."
    stale = False
    for what, command in STEPS.items():
        before = contents()
        subprocess.run([str(c) for c in command], cwd=ROOT, check=True)
        after = contents()
        changed = sorted(f for f in before.keys() | after.keys() if before.get(f) != after.get(f))
        print(f"{'ok   ' if not changed else 'STALE'} {what}" + "".join(f"\n      {f}" for f in changed), flush=True)
        stale = stale or bool(changed)
    if stale: sys.exit("the files named above were out of date and have been rewritten: look at them and commit them")


if __name__ == "__main__": main()
