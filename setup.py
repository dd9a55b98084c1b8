"""Package metadata for pip, read from settings.ini so that it is written in one place only."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(ROOT / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
readme = ROOT / "README.md"

extras = {extra: cfg[f"{extra}_requirements"].split() for extra in ("dev", "cluster", "features", "onnx")}
extras["dev"] += extras["cluster"] + extras["features"] + extras["onnx"] # whatever the tests need

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    license="Apache-2.0",
    keywords=cfg["keywords"],
    url=cfg["git_url"],
    packages=find_packages(include=[f"{cfg['lib_path']}*"]),
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": [f"gsdnet = {cfg['lib_path']}.cli:main"],
        # lets other nbdev projects link to this one's documentation
        "nbdev": [f"{cfg['lib_path']} = {cfg['lib_path']}._modidx:d"],
    },
)
