"""Emotion recognition in conversations with missing modalities, by diffusion on graph spectra."""
__version__ = "0.2.0.dev0"

from importlib import import_module

# Names that most users need, loaded when first asked for: `gsdnet --help` must not wait for torch.
_HOME = {
    "Conversation": "conversation", "ConversationDataset": "data", "GSDConfig": "model", "GSDNet": "model",
    "MaskKit": "missing", "SpectralDiffusion": "diffusion", "SyntheticConversations": "data", "TrainConfig": "trainer",
    "evaluate": "metrics", "fit": "trainer", "load_dataset": "data", "save_dataset": "data",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name):
    if name not in _HOME: raise AttributeError(f"module 'gsdnet' has no attribute {name!r}")
    return getattr(import_module(f"gsdnet.{_HOME[name]}"), name)


def __dir__(): return sorted({*globals(), *_HOME})
