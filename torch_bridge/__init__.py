"""PyTorch side of xmsd: the two VLMs, their extraction, and the live target (never imported at package import)."""
