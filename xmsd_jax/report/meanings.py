"""What the numbers of the page mean, term by term."""

from xmsd_jax.report.markup import Markup, join, tag

TERMS = (
    ("Iterations", "Passes of the target that check a draft, after the prefill, per answer; plain decoding has none."),
    (
        "Tokens per iteration, τ",
        "Tokens that the iterations gave, divided by their number; plain decoding gives one a pass.",
    ),
    ("Free tokens", "Tokens drafted before or beside the prefill and found right, counted from the first one."),
    (
        "Vision, prefill, decode",
        "Milliseconds per answer. Prefill holds the drafting for it; decode holds everything after it: drafting, "
        "checking, the loop itself.",
    ),
    (
        "Speed-up",
        "Sum of the baseline's seconds divided by the sum of this row's, over the same answers. The baseline is "
        "the best row without speculation on the same machine, and is named.",
    ),
    (
        "Interval",
        "95 %, percentile bootstrap that draws whole sequences, since clips of one sequence resemble each other. "
        "With one sequence there is none.",
    ),
    ("Dash", "The number does not apply: no free tokens without prefill drafts, no iterations without drafts."),
)
FURTHER = {
    "offline": (
        (
            "Sₖ",
            "Share of anchors at which the first k drafted tokens are all right. An anchor is a place in the answer at "
            "which a draft starts. Over all anchors, easy stretches count too often, so it is a curve and not a speed; "
            "over visited anchors it counts only those at which a walk stops.",
        ),
        (
            "Walk τ",
            "Tokens per iteration when a stored answer is walked as live decoding walks it: draft, accept the longest "
            "right prefix, go on behind it. Predictions rest on it.",
        ),
        (
            "Teacher-forced, rolled out",
            "Teacher-forced: each step is given the true states before it, which live decoding does not have. Rolled "
            "out: the drafter goes on from its own predictions, as it must.",
        ),
        (
            "Accept@τ",
            "Share of positions at which the cosine between predicted and true hidden state is at least τ (here a "
            "threshold). It measures states, not acceptance: no token is compared.",
        ),
    ),
    "predicted": (
        (
            "Predicted parts",
            "Each part of the cost model measured on its own and multiplied by how often it occurs: vision, prefill, "
            "the drafter's lane before phase 2 as far as it delays, first check, and per iteration draft, keeping the "
            "drafter in step, verify, host. The number of iterations is that of the walk, and no part is a residual. "
            "Predictions are written before the live pass starts.",
        ),
    ),
}
"""Terms of sections that a run may not have."""


def meanings(*, offline: bool, predicted: bool) -> Markup:
    """The terms of the sections that the page has."""
    terms = [*TERMS, *(FURTHER["offline"] if offline else ()), *(FURTHER["predicted"] if predicted else ())]
    entries = [join(tag("dt", term), tag("dd", meaning)) for term, meaning in terms]
    return tag("section", tag("h2", "What the numbers mean"), tag("dl", *entries), id="meanings")
