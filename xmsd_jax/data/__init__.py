"""Events, clips, recordings and stores: numpy and tensorstore only, neither jax nor torch."""
