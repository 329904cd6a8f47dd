"""The gallery on the page: what each model saw, and the answer with every token marked by its origin."""

import base64
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from xmsd_jax.report.gallery import ORIGINS, Card, read_picture
from xmsd_jax.report.markup import Markup, join, tag

ORIGIN_WORDS = {
    "prefill-draft": "free in the prefill",
    "draft": "accepted draft",
    "target": "the target's own token",
}
_COUNTED = {"prefill-draft": "free in the prefill", "draft": "from accepted drafts", "target": "by the target itself"}
_END = "∎"


def gallery_section(run_dir: Path, cards: Sequence[Card], title: str) -> Markup:
    """Cards clip by clip, under a title, with how to read them and the legend of origins."""
    clips = [_clip(run_dir, list(group)) for _, group in groupby(cards, key=lambda card: (card.clip, card.video_png))]
    reading = (
        "Left, a frame of the video that the slow target sees; right, the events that the fast drafter sees (red: "
        "brighter, blue: darker). The text is the target's answer; the marks tell how each token came."
    )
    return tag("section", tag("h2", title), tag("p", reading), legend(), *clips)


def legend() -> Markup:
    """The three origins, each marked as it is in the answers."""
    entries = [tag("li", tag("span", ORIGIN_WORDS[origin], class_=f"token {origin}")) for origin in ORIGINS]
    return tag("ul", *entries, class_="legend origins")


def answer(tokens: Sequence[str], origins: Sequence[str]) -> Markup:
    """The tokens, each in a span that says its origin; white space stays outside of the marks."""
    spans = []
    for piece, origin in zip(tokens, origins, strict=True):
        body = piece.strip()
        start = piece[: len(piece) - len(piece.lstrip())]
        end = piece[len(piece.rstrip()) :] if body else ""
        mark = tag("span", body or _END, class_=f"token {origin}", title=ORIGIN_WORDS[origin])
        spans.append(join(start, mark if body or not piece else None, end))
    return tag("p", *spans, class_="answer")


def counted(card: Card) -> str:
    """How the answer came, in one line of words."""
    counts = Counter(card.origins)
    parts = [f"{counts[origin]} {_COUNTED[origin]}" for origin in ORIGINS if counts[origin]]
    passes = "" if card.iterations is None else f" in {card.iterations} passes of the target after the prefill"
    return f"{len(card.tokens)} tokens{passes}: {', '.join(parts)}"


def _clip(run_dir: Path, cards: Sequence[Card]) -> Markup:
    """The two pictures of a clip and the answers about it."""
    first = cards[0]
    frames = [
        _frame(run_dir, first.video_png, f"Video frame of clip {first.clip}", "Target sees: video"),
        _frame(run_dir, first.event_png, f"Event frame of clip {first.clip}", "Drafter sees: events"),
    ]
    source = ", ".join(part for part in (first.source, first.sequence) if part)
    title = tag("h3", first.clip, tag("small", source))
    truth = tag("p", "In truth: ", first.truth, class_="note") if first.truth else None
    left = tag("div", tag("div", *frames, class_="frames"), truth, class_="seen")
    return tag("article", title, tag("div", left, tag("div", *map(_answer, cards), class_="answers"), class_="clip"))


def _frame(run_dir: Path, name: str, alt: str, caption: str) -> Markup | None:
    if not name:
        return None
    data = base64.b64encode(read_picture(run_dir, name)).decode("ascii")
    picture = tag("img", src=f"data:image/png;base64,{data}", alt=alt)
    return tag("figure", picture, tag("figcaption", caption))


def _answer(card: Card) -> Markup:
    if card.equal:
        outcome = tag("em", "equal to the target alone", class_="verdict faster")
    else:
        differs = tag("em", "differs from the target alone", class_="verdict slower")
        outcome = join(differs, " The target alone: ", tag("q", card.reference))
    row = tag("p", tag("b", card.row), " · ", counted(card), " · ", outcome, class_="note")
    return tag("div", tag("h4", card.question), answer(card.tokens, card.origins), row, class_="card")
