"""Speculative decoding on the host: ports, acceptance, text drafters, the offline walk, the live loop, the certificate.

Nothing here imports torch or jax: the target is reached through the `Verifier` port, drafts through `Drafter`.
"""
