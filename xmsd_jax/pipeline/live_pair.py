"""The loaded pair as a ladder needs it: verifiers, the drafter's lane, every drafter by its name, rungs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from xmsd_jax.adapters.token_head import TokenHead
from xmsd_jax.decoding.draft_lengths import DraftLengths
from xmsd_jax.decoding.ladder import Rung, speculative
from xmsd_jax.decoding.live import Lanes, LiveConfig
from xmsd_jax.decoding.plain import decode_plain
from xmsd_jax.decoding.ports import Drafter, Prompt, Verifier
from xmsd_jax.decoding.proposer import PrefillDrafter, RolloutDrafter
from xmsd_jax.decoding.trace import Trace
from xmsd_jax.pipeline.engine import LIBRARY, EngineConfig
from xmsd_jax.pipeline.pair import PairConfig, model_folder, pair_options
from xmsd_jax.pipeline.rows import TEXT, DraftRow
from xmsd_jax.pipeline.trained import Trained, chosen

Decisions = Callable[[Any], Any]
"""Wraps a verifier in another one."""
EAGER = "target eager"
SPARE = 16  # tokens that a static cache holds beyond an answer: a pass in its middle may be timed at any length


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Sizes that drafters are compiled for, and how the two lanes run."""

    gamma: int
    prefill_draft_len: int
    max_new_tokens: int
    lanes: Lanes = "serial"

    def config(self, row: DraftRow) -> LiveConfig:
        """How a row decodes."""
        return LiveConfig(
            gamma=row.longest(self.gamma),
            max_new_tokens=self.max_new_tokens,
            prefill_draft_len=self.prefill_draft_len if row.first else 0,
            prefill_mode=row.prefill_mode,
            lanes=self.lanes,
        )


class LivePair:
    """Both models of a pair with everything that drafts for the target.

    `verifier` computes each answer whole; `shared` keeps vision and prefill of a prompt, for comparing decoding alone
    (`share(True)` lets the drafter's lane do the same); `eager` is the target as the library runs it. `plain` names the
    row of plain decoding by `verifier`.
    """

    def __init__(
        self,
        models: tuple[Any, Any],
        lengths: Lengths,
        *,
        text: Mapping[str, Drafter],
        adapters: Mapping[str, Trained],
        engine: EngineConfig | None = None,
        decisions: Decisions | None = None,
        room: int | None = None,
        library_target: Any = None,
    ) -> None:
        """Put an engine under loaded models; drafters are made as they are asked for.

        Args:
            models: target and drafter.
            lengths: of drafts and answers.
            text: text drafters by name.
            adapters: adapters by name.
            engine: under verifiers and lane; None: the default one.
            decisions: what stands between every verifier and the loop, as a replay of recorded answers.
            room: tokens after the prompt that static caches hold; None: an answer, and some to spare.
            library_target: for rows of plain decoding by the library's own products, over this engine, eager, and by
                `generate()`: the target, once more where its layers are replaced. None: no such row over the engine.
        """
        from torch_bridge.drafter import TorchLane
        from torch_bridge.exchange import fetch, share
        from torch_bridge.quantize import dense_weight
        from torch_bridge.verifier import SharedVerifier, TorchVerifier

        self.target, self.drafter_model = models
        self.engine = engine = engine or EngineConfig()
        room, decided = room or lengths.max_new_tokens + SPARE, decisions or (lambda verifier: verifier)
        self._rows = engine.rows(room)
        whole = TorchVerifier(self.target, engine.session(self.target, room))
        shared = SharedVerifier(self.target, engine.session(self.target, room))
        self._by_generate = self.target if library_target is None else library_target
        self.eager: Verifier = decided(TorchVerifier(self._by_generate))
        self.verifier: Verifier = decided(whole)
        self.shared: Verifier = decided(shared)
        session = engine.session(self.drafter_model, room)
        self.lane = TorchLane(self.drafter_model, max_new_tokens=lengths.max_new_tokens, session=session)
        self.plain = EAGER if engine.cache == "growing" else f"target {engine.row(self.target.device.type)}"
        self.lengths, self._text, self._adapters = replace(lengths, lanes=engine.lanes), text, adapters
        self._library = decisions is None
        self._warmed: tuple[Any, ...] = (whole, shared, self.lane)
        self.by_library: Verifier | None = None
        if library_target is not None:
            session = replace(engine, products="library").session(library_target, room)
            library = TorchVerifier(library_target, session)
            self.by_library = decided(library)
            self._warmed += (library,)
        self._head = TokenHead.of(share(dense_weight(self.target.lm_head)), self.target.real_vocabulary)
        self._fetch = fetch
        self._made: dict[tuple[str, int], Drafter] = {}

    @classmethod
    def load(cls, config: PairConfig, lengths: Lengths, *, by_library: bool = False, **options: Any) -> "LivePair":
        """Load the models of a config; `options` as in the constructor.

        `by_library`: plain decoding over the engine by the library's products too, where the engine has its own; rows
        which bear the library's name are its own (a second target is loaded where layers are replaced).
        """
        from torch_bridge.pair import load_pair
        from torch_bridge.video_llava import load_target

        models = load_pair(**pair_options(config))
        engine = options.get("engine") or EngineConfig()
        if by_library and engine.fuses(models[0]):
            how = {"dtype": config.dtype, "device": config.device, "quantisation": config.quantisation}
            again = engine.replaces(models[0])
            options["library_target"] = load_target(model_folder(config, "target"), **how) if again else models[0]
        return cls(models, lengths, **options)

    def share(self, on: bool) -> None:
        """Let the drafter's lane keep what it read of a prompt, or not."""
        self.lane.share = on

    def warm(self, prompt: Prompt) -> None:
        """Do all that the first answers would take longer for, so that no timed one does: captures, compiling."""
        for one in self._warmed:
            one.warm(prompt)

    def kept(self, states: Any) -> Any:
        """A copy of states [n, d] as rows of memory of the size in which a static session holds them."""
        memory = states.new_zeros(self._rows, states.shape[1])
        memory[: len(states)] = states
        return memory[: len(states)]

    def drafter(self, name: str, count: int) -> Drafter:
        """The drafter of that name, compiled for `count` ids a draft (phase 1: `prefill_draft_len`)."""
        if name in TEXT:
            return self._text[name]
        if (name, count) not in self._made:
            self._made[name, count] = self._make(chosen(self._adapters, [name])[0], count)
        return self._made[name, count]

    def _make(self, one: Trained, count: int) -> Drafter:
        if one.early:
            return PrefillDrafter(
                one.adapter,
                self._head,
                name=one.name,
                lane=self.lane,
                draft_len=count,
                windows=partial(self._window, stream=self.lane.stream),
                fetch=partial(self._fetch, stream=self.lane.stream),
            )
        adapter: Any = one.adapter
        return RolloutDrafter(
            adapter,
            self._head,
            name=one.name,
            gamma=count,
            max_new_tokens=self.lengths.max_new_tokens,
            windows=self._window,
            fetch=self._fetch,
            mode=one.mode,
            lane=self.lane,
            first_rows=self.lengths.prefill_draft_len + 1,
        )

    def _window(self, rows: int, stream: Any = None) -> Any:
        from torch_bridge.exchange import TorchWindow

        return TorchWindow(rows, self.target.width, dtype=self.target.dtype, device=self.target.device, stream=stream)

    def early_drafter(self, row: DraftRow) -> Drafter | None:
        """Who drafts in phase 1 of a row."""
        return self.drafter(row.first, self.lengths.prefill_draft_len) if row.first else None

    def late_drafter(self, row: DraftRow) -> Drafter | None:
        """Who drafts in phase 2 of a row."""
        return self.drafter(row.drafter, row.longest(self.lengths.gamma)) if row.drafter else None

    def rung(
        self, row: DraftRow, verifier: Verifier | None = None, *, draft_lengths: DraftLengths | None = None
    ) -> Rung:
        """A row of the ladder, over `verifier` (None: the one that computes answers whole).

        `draft_lengths`: how much each iteration drafts; None: always as much as the row says.
        """
        return speculative(
            row.name,
            self.verifier if verifier is None else verifier,
            self.late_drafter(row),
            self.lengths.config(row),
            prefill_drafter=self.early_drafter(row),
            lengths=draft_lengths,
        )

    @property
    def library_row(self) -> str:
        """The name of plain decoding over the engine by the library's products."""
        return f"{self.plain}, {LIBRARY}"

    def plain_rungs(self, *, engine_alone: bool = False) -> list[Rung]:
        """The rows that do not speculate: over the engine, eager, and (unless answers are replayed) `generate()`."""
        plain = {EAGER: self.eager, self.plain: self.verifier}
        if self.by_library is not None:
            plain[self.library_row] = self.by_library
        if engine_alone:
            plain = {self.plain: self.verifier}
        count = self.lengths.max_new_tokens
        rungs = [Rung(name=n, answer=partial(decode_plain, v, max_new_tokens=count)) for n, v in plain.items()]
        library = self._library and not engine_alone
        return [*rungs, *([Rung(name="target generate()", answer=self._generated)] if library else [])]

    def _generated(self, prompt: Prompt) -> Trace:
        from torch_bridge.generate import generate

        ids, seconds = generate(self._by_generate, prompt, self.lengths.max_new_tokens)
        stop = "eos" if ids[-1] in self.verifier.eos_ids else "length"
        return Trace(ids=ids, origins=("target",) * len(ids), stop=stop, seconds={**seconds, "first": 0.0})
