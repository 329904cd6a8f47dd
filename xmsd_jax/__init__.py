"""Adapters, drafters and live decoding for multimodal speculative decoding (numpy and JAX side)."""

__version__ = "0.1.0"
