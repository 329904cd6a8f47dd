"""The study's adapters in Flax NNX: from states of the drafter, of the target, or of both, to target states."""
