"""Emotion recognition in conversations with missing modalities, by diffusion on graph spectra."""
__version__ = "0.1.0"
