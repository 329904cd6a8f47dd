"""Training an adapter on stored pairs: losses, the jitted step, the loop, its checkpoints."""
