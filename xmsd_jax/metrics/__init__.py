"""What each number means: counted sums, ratios with intervals, and the figures of a live run."""
