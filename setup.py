"""Package metadata for pip, read from settings.ini so that it is written in one place only."""
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(ROOT / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
readme = (ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").exists() else ""
# where the README is shown alone, what it points to lies in the repository
readme = re.sub(r"\]\((?!https?:|#)([^)]+\.png)\)", rf"]({cfg['git_url']}/raw/{cfg['branch']}/\1)", readme)
readme = re.sub(r"\]\((?!https?:|#)([^)]+)\)", rf"]({cfg['git_url']}/blob/{cfg['branch']}/\1)", readme)

extras = {extra: cfg[f"{extra}_requirements"].split() for extra in ("dev", "cluster", "features", "onnx")}
extras["dev"] += extras["cluster"] + extras["features"] + extras["onnx"] # whatever the tests need

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme,
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    license="Apache-2.0",
    keywords=cfg["keywords"],
    url=cfg["git_url"],
    project_urls={"Documentation": f"{cfg['doc_host']}{cfg['doc_baseurl']}", "Changelog": f"{cfg['git_url']}/blob/{cfg['branch']}/CHANGELOG.md"},
    classifiers=["Development Status :: 3 - Alpha", "Intended Audience :: Science/Research", "Natural Language :: English", "Programming Language :: Python :: 3",
                 "Topic :: Scientific/Engineering :: Artificial Intelligence", "Typing :: Typed"],
    packages=find_packages(include=[f"{cfg['lib_path']}*"]),
    package_data={cfg["lib_path"]: ["py.typed"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": [f"gsdnet = {cfg['lib_path']}.cli:main"],
        # lets other nbdev projects link to this one's documentation
        "nbdev": [f"{cfg['lib_path']} = {cfg['lib_path']}._modidx:d"],
    },
)
