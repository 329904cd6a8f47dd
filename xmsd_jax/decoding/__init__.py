"""Speculative decoding: ports, acceptance, text drafters and adapters as drafters, walk, live loop, certificate, costs.

Nothing here imports torch: the target is reached through the `Verifier` port, the event model through `DrafterLane`,
drafts through `Drafter`. Only `proposer` computes with jax.
"""
