"""Live speculative decoding of one answer: goals, terms and rules.

**Goal.** The emitted tokens are the target's own: at T = 0 its greedy tokens, at T > 0 a sample of its distribution,
whatever the drafter proposes. The target is a `Verifier`, the drafter a `Drafter`; neither is known by name here.

**Phase 1** (`prefill_mode`) drafts positions 0, 1, ... before any token is known; the accepted ones are "free".
- `none`: the target's prefill emits y_0.
- `ride`: the draft is appended to the last prompt chunk; the prefill's own states check it and give the next token, so
  T_first (`seconds["first"]`) is 0 and the prefill is k tokens longer.
- `wait`: the prefill emits y_0. If d_0 = y_0 (at T > 0: if d_0 is accepted under y_0's distribution), ONE pass over
  [d_0..d_{k-1}] checks the rest and gives the next token. T_first is that pass with its acceptance and crop; where d_0
  is wrong, or ends the answer, there is no pass and T_first is 0.
With `lanes` serial the drafter comes first: its drafting is charged in full, inside `prefill`. With parallel lanes the
drafter's own model reads its prompt and drafts in a thread beside the target's prefill, and `wait` is charged what it
is late by; a draft that rides is asked for when the visual tokens are on their way (`Verifier.prefill`).

**Phase 2**, at anchor t: draft d_1..d_g, read [y_t, d_1..d_g] in one pass, keep the accepted prefix and the target's
next token, crop the cache. g is `gamma`, or what `lengths` chooses before each iteration, 0..gamma: with 0 the drafter
is not asked. An empty draft is a step (M = 1) and counts as an iteration. Without a drafter phase 2 is plain decoding:
no iterations.

**Stop.** At an EOS (kept) or at `max_new_tokens`; what a pass emits after that is dropped and not counted, so that a
walk over the stored answer counts the same.

**Capacity.** A verifier with `capacity` holds that many tokens after the prompt: a draft is cut to what fits, at anchor
t to `capacity - (t + 1)` ids. Since `capacity >= max_new_tokens` is required, the cut keeps every position that can
still be emitted, and changes neither iterations nor accepted counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from xmsd_jax.config import ConfigError
from xmsd_jax.decoding.beside import Beside
from xmsd_jax.decoding.clock import Clock
from xmsd_jax.decoding.draft_lengths import DraftLengths, Fixed
from xmsd_jax.decoding.judge import Judge, check_draft, no_draft, split
from xmsd_jax.decoding.ports import Context, Draft, Drafter, DrafterLane, Prompt, Span, Verified, Verifier
from xmsd_jax.decoding.stopping import Answer, Listener
from xmsd_jax.decoding.trace import Iteration, Origin, Trace

Lanes = Literal["serial", "parallel"]


@dataclass(frozen=True, kw_only=True)
class LiveConfig:
    """How to decode. `gamma`: most ids drafted an iteration; `prefill_draft_len`: ids of phase 1 (0 with `none`)."""

    gamma: int
    max_new_tokens: int
    temperature: float = 0.0
    prefill_draft_len: int = 0
    prefill_mode: Literal["none", "ride", "wait"] = "none"
    lanes: Lanes = "serial"

    def __post_init__(self) -> None:
        """Raise ConfigError on values that contradict each other."""
        for name in ("gamma", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature must be 0 (greedy) or positive and finite, got {self.temperature}")
        if self.prefill_mode not in ("none", "ride", "wait"):
            raise ConfigError(f"prefill_mode must be none, ride or wait, got {self.prefill_mode!r}")
        if (self.prefill_mode == "none") != (self.prefill_draft_len == 0) or self.prefill_draft_len < 0:
            raise ConfigError(
                "prefill_draft_len must be positive with prefill_mode ride or wait and 0 with none, got "
                f"{self.prefill_draft_len} with {self.prefill_mode}; set both or neither"
            )


def decode(
    verifier: Verifier,
    drafter: Drafter | None,
    prompt: Prompt,
    config: LiveConfig,
    rng: np.random.Generator | None = None,
    prefill_drafter: Drafter | None = None,
    listener: Listener | None = None,
    lengths: DraftLengths | None = None,
) -> Trace:
    """Decode one answer.

    Args:
        verifier: the target.
        drafter: of phase 2; None decodes phase 2 plainly.
        prompt: clip and question.
        config: lengths, temperature, phase-1 mode.
        rng: needed at T > 0, unused at T = 0.
        prefill_drafter: of phase 1; None takes `drafter`.
        listener: told of the tokens as they are verified; its time is part of the answer's.
        lengths: how many ids each iteration drafts; None drafts `config.gamma` every time.

    Raises ValueError on a draft that is longer than asked for or holds an id that is not real, ConfigError on a
    capacity below `max_new_tokens` and on phase 1 without any drafter.
    """
    prefill_drafter = drafter if prefill_drafter is None else prefill_drafter
    _check(verifier, prefill_drafter, config)
    run = _Run(verifier, prompt, config, Judge(temperature=config.temperature, rng=rng), listener)
    free = run.prefill(prefill_drafter, lanes_of(prefill_drafter, drafter))
    lengths = Fixed(gamma=config.gamma) if lengths is None else lengths
    lengths.begin()
    while run.answer.stop is None:
        run.iterate(drafter, lengths)
    return Trace(
        ids=tuple(run.answer.ids),
        origins=tuple(run.answer.origins),
        stop=run.answer.stop,
        iterations=tuple(run.iterations),
        n_free=run.answer.origins.count("prefill-draft"),
        prefill_drafted=tuple(free.ids.tolist()),
        seconds=run.clock.seconds(),
        spans=run.clock.spans(),
    )


def lanes_of(*drafters: Drafter | None) -> list[DrafterLane]:
    """The drafter models behind some drafters, each once."""
    found = [lane for drafter in drafters if (lane := getattr(drafter, "lane", None)) is not None]
    return list({id(lane): lane for lane in found}.values())


def _check(verifier: Verifier, prefill_drafter: Drafter | None, config: LiveConfig) -> None:
    if config.prefill_draft_len and prefill_drafter is None:
        raise ConfigError(f"prefill_mode {config.prefill_mode} needs a drafter, got none; name one or set none and 0")
    capacity = getattr(verifier, "capacity", None)
    if capacity is not None and capacity < config.max_new_tokens:
        raise ConfigError(
            f"the target's cache must hold max_new_tokens = {config.max_new_tokens} tokens after the prompt, got "
            f"capacity {capacity}; make the cache larger or ask for fewer tokens"
        )


class _Run:
    """The state of one answer in the making. Between calls the cache holds the prompt and all tokens but the last."""

    def __init__(
        self, verifier: Verifier, prompt: Prompt, config: LiveConfig, judge: Judge, listener: Listener | None
    ) -> None:
        self.verifier, self.prompt, self.config, self.judge = verifier, prompt, config, judge
        self.clock = Clock(verifier)
        self.answer = Answer(eos_ids=verifier.eos_ids, max_new_tokens=config.max_new_tokens, listener=listener)
        self.iterations: list[Iteration] = []
        self.hidden: tuple[Any, ...] = ()
        self.lanes: Sequence[DrafterLane] = ()
        self.prompt_ids = verifier.prompt_ids(prompt)

    def prefill(self, drafter: Drafter | None, lanes: Sequence[DrafterLane]) -> Draft:
        """Phase 1: both models read their prompt, and the draft is checked, if any. Returns the draft."""
        self.lanes = lanes
        riding = self.config.prefill_mode == "ride"
        if lanes and self.config.lanes == "parallel":
            draft, verified = self.side_by_side(drafter, riding)
        else:
            draft = self.early(drafter)
            if lanes or len(draft.ids):
                self.clock.lap("prefill_draft", self.spans())
            verified = self.verifier.prefill(
                self.prompt, draft.ids.tolist() if riding else (), logits=self.judge.sampled
            )
        if riding or not len(draft.ids):
            self.settle(draft, verified, "prefill-draft", lap="prefill")
        else:
            self.wait(draft, verified)
        return draft

    def early(self, drafter: Drafter | None) -> Draft:
        """The drafter models read their prompt, and phase 1 is drafted, if it is."""
        for lane in self.lanes:
            lane.begin(self.prompt)
        if drafter is None or not self.config.prefill_draft_len:
            return no_draft()
        return self.draft(drafter, self.config.prefill_draft_len)

    def side_by_side(self, drafter: Drafter | None, riding: bool) -> tuple[Draft, Verified]:
        """Phase 1's draft in a thread beside the target's prefill: the draft, and what the prefill verified."""
        with Beside(lambda: self.early(drafter)) as beside:
            verified = self.verifier.prefill(self.prompt, beside.ids if riding else (), logits=self.judge.sampled)
            self.clock.lap("prefill")
            draft = beside.draft()
        self.clock.lap("prefill_draft", beside=self.spans())
        return draft, verified

    def wait(self, draft: Draft, verified: Verified) -> None:
        """Check d_0 by the state that emits y_0; where it stands, check the rest in one pass, which reads d_0 too."""
        head, tail = split(draft, 1)
        accepted, token = self.judge.first(head, verified)
        self.keep(verified, 1)
        self.answer.emit([token], "prefill-draft" if accepted else "target")
        self.clock.lap("prefill")
        if accepted and self.answer.stop is None:
            verified = self.verifier.verify(draft.ids.tolist(), logits=self.judge.sampled)
            self.settle(tail, verified, "prefill-draft", lap="first")

    def iterate(self, drafter: Drafter | None, lengths: DraftLengths) -> None:
        """Phase 2: one draft and its verification, or one step of plain decoding."""
        anchor = len(self.answer.ids) - 1
        asked = 0 if drafter is None else lengths.choose(self.config.gamma)
        draft = no_draft()
        if drafter is not None and asked:
            draft = self.draft(drafter, asked)
            self.clock.lap("draft", self.spans())
        verified = self.read([self.answer.ids[-1], *draft.ids.tolist()])
        self.clock.lap("verify")
        accepted, emitted = self.settle(draft, verified, "draft", lap="verify", host="host")
        if drafter is not None:
            lengths.tell(asked, len(draft.ids), accepted)
            drafted = tuple(draft.ids.tolist())
            self.iterations.append(Iteration(anchor=anchor, drafted=drafted, accepted=accepted, emitted=emitted))

    def draft(self, drafter: Drafter, count: int) -> Draft:
        """Ask for `count` ids, refuse what must not be read, cut to the cache (module docstring)."""
        known = np.array(self.answer.ids, np.int32)
        context = Context(prompt=self.prompt, ids=known, hidden=self.hidden, prompt_ids=self.prompt_ids)
        draft = drafter.propose(context, count)
        check_draft(draft, name=drafter.name, asked=count, vocabulary=self.verifier.vocabulary)
        capacity = getattr(self.verifier, "capacity", None)
        return draft if capacity is None else split(draft, capacity - len(known))[0]

    def spans(self) -> list[Span]:
        """What the lanes did since the last cut of the clock."""
        return [span for lane in self.lanes for span in lane.take_spans()]

    def read(self, ids: list[int]) -> Verified:
        """Let the target read: M = 1 has its own entry, the one that plain decoding uses."""
        if len(ids) == 1:
            return self.verifier.step(ids[0], logits=self.judge.sampled)
        return self.verifier.verify(ids, logits=self.judge.sampled)

    def settle(
        self, draft: Draft, verified: Verified, origin: Origin, *, lap: str, host: str | None = None
    ) -> tuple[int, int]:
        """Emit the accepted prefix and the target's next token, crop the rest; returns (accepted, emitted)."""
        n, token = self.judge.all(draft, verified)
        accepted = self.answer.emit(draft.ids[:n].tolist(), origin)
        emitted = accepted + self.answer.emit([token], "target")
        self.keep(verified, n + 1)
        self.clock.lap(host or lap)
        if n < len(draft.ids):
            self.verifier.crop(len(draft.ids) - n)
        self.clock.lap(lap)
        return accepted, emitted

    def keep(self, verified: Verified, count: int) -> None:
        """Keep the first `count` states: those that emitted tokens of the answer."""
        if verified.hidden is not None:
            self.hidden = (*self.hidden, verified.hidden[:count])
