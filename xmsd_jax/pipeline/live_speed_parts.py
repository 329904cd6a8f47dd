"""The parts of `live_speed`, each of one quantisation: numbers for JSON, from a pair that is made once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from xmsd_jax import __version__
from xmsd_jax.adapters.kinds import CONTROLS, make
from xmsd_jax.config import ConfigError
from xmsd_jax.data.clip_folder import ClipFolder
from xmsd_jax.data.clips import Clip
from xmsd_jax.data.clips_made import write_made_clips
from xmsd_jax.data.quantisation import Quantisation
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.decoding.live import LiveConfig, decode
from xmsd_jax.decoding.oracle import Oracle
from xmsd_jax.decoding.plain import decode_plain
from xmsd_jax.decoding.ports import Context, Draft, Drafter, Prompt
from xmsd_jax.decoding.replayed import Replayed
from xmsd_jax.pipeline.contention import measure_contention
from xmsd_jax.pipeline.fitted import fit_answers
from xmsd_jax.pipeline.live_ladder import Asked, Entry, run_ladder
from xmsd_jax.pipeline.live_pair import SPARE, Lengths, LivePair
from xmsd_jax.pipeline.replay import replay_of
from xmsd_jax.pipeline.rows import TEXT
from xmsd_jax.pipeline.trained import Trained
from xmsd_jax.runs import Row, Run, progress, stage_key


class Bench:
    """A pair of random weights, made when the first part asks for it, and the parts."""

    def __init__(self, config: Any, run: Run, quantisation: Literal["none", "nf4"]) -> None:
        """Nothing is made yet."""
        self.config, self.run = config, run
        self.quantisation = Quantisation(format=quantisation)

    @property
    def measures(self) -> Mapping[str, Callable[[Path], Any]]:
        """Part -> its numbers; the argument is a folder for what is written beside them."""
        return {
            "passes": self.passes,
            "replayed": self.replayed,
            "beside": self.beside,
            "exact": self.exact,
            **{f"imposed{tokens}": partial(self.imposed, tokens) for tokens in self.config.imposed.lengths},
        }

    @cached_property
    def models(self) -> tuple[Any, Any]:
        """Target and drafter on the device."""
        import torch

        from torch_bridge.made_pair import made_pair

        config = self.config
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        if torch.device(config.device).type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"device: {config.device}: torch finds no GPU; set device to cpu and a small shape")
        how = {"device": config.device, "dtype": getattr(torch, config.dtype), "seed": config.seed}
        return made_pair(config.shape, self.quantisation, **how)

    @cached_property
    def clip(self) -> Clip:
        """What is looked at."""
        path = self.run.path / "clips"
        with self.run.stage("clips", stage_key(self.config.made, __version__), False) as stage:
            folder = ClipFolder.open(path) if stage.reused else write_made_clips(path, self.config.made)
        return folder.load(folder.clips[0])

    @cached_property
    def library_target(self) -> Any:
        """Who multiplies few rows as the library does: the target, once more where its layers are replaced.

        None where the engine does so anyway.
        """
        import torch

        from torch_bridge.made_pair import made_target

        config = self.config
        if not config.engine.fuses(self.models[0]):
            return None
        if not config.engine.replaces(self.models[0]):
            return self.models[0]
        how = {"device": config.device, "dtype": getattr(torch, config.dtype), "seed": config.seed}
        return made_target(config.shape, self.quantisation, **how)

    def release(self) -> None:
        """Give the pair's memory back."""
        from torch_bridge.extract_speed import release_memory

        self.__dict__.pop("library_target", None)
        if "models" in self.__dict__:
            device = self.models[0].device
            del self.models
            release_memory(device)

    def passes(self, folder: Path) -> dict[str, Any]:
        """Seconds of prompts, passes and products, and where a pass spends them."""
        from torch_bridge import step_speed
        from torch_bridge.extract_speed import device_name
        from torch_bridge.vlm import Session

        config, (target, drafter), library = self.config, self.models, self.library_target
        found: dict[str, Any] = {"device": device_name(target.device), "quantisation": target.quantisation}
        sessions = {"eager": Session(target if library is None else library), "engine": self._session(target)}
        if library is not None:
            sessions["library"] = replace(config.engine, products="library").session(library, self._room)
        for name, session in sessions.items():
            prompts = step_speed.prompt_seconds(
                session, QUESTIONS[0], self.clip, repeats=5, riding=config.prefill_draft_len
            )
            steps = step_speed.pass_seconds(session, config.passes, repeats=config.pass_repeats)
            found[name] = {"prompt": step_speed.millis(prompts), "passes": step_speed.millis(steps)}
        found["context"] = sessions["engine"].length
        for count in (1, 6):
            groups = step_speed.kernel_groups(sessions["engine"], count)
            (folder / f"kernels_{count}.txt").write_text(groups.pop("table"), encoding="utf-8")
            found[f"groups_{count}"] = groups
        products = {m: step_speed.product_seconds(target, m, repeats=config.pass_repeats) for m in config.passes}
        found["products"] = step_speed.millis(products)
        if library is not None:
            products = {
                m: step_speed.product_seconds(library, m, repeats=config.pass_repeats, own=False) for m in config.passes
            }
            found["library products"] = step_speed.millis(products)
        heads = {m: step_speed.head_seconds(target, m, repeats=config.pass_repeats) for m in (1, 6)}
        found["head"] = step_speed.millis(heads)
        lane = self._session(drafter)
        prompts = step_speed.prompt_seconds(lane, QUESTIONS[0], self.clip, repeats=5, riding=1)
        steps = step_speed.pass_seconds(lane, (1,), repeats=config.pass_repeats)
        found["drafter"] = {"prompt": step_speed.millis(prompts), "passes": step_speed.millis(steps)}
        return found

    def replayed(self, folder: Path) -> list[Any]:
        """The ladder over recorded decisions."""
        config = self.config
        whole = replay_of(config.recorded, self.clip)
        at = np.unique(np.linspace(0, len(whole.prompts) - 1, config.replayed_answers).astype(int))
        prompts = tuple(whole.prompts[number] for number in at)
        cut = {name: ids[: config.max_new_tokens] for name, ids in whole.answers.items()}
        asked = Asked(clips="recorded answers", prompts=prompts, answers=cut)
        text = fit_answers(whole.fitted, config.order, self.models[0].real_vocabulary)
        rows = config.rows if self.quantisation.format == "none" else config.quantised_rows
        pair = self._pair(asked, config.max_new_tokens, text, library_target=self.library_target)
        entries = [Entry(row=row) for row in rows]
        return self._ladder(asked, entries, pair, "replayed", folder)

    def imposed(self, tokens: int, folder: Path) -> list[Any]:
        """The ladder over an oracle's drafts, for answers of one length."""
        config, how = self.config, self.config.imposed
        asked = self._made_answers(tokens, how.answers)
        text = fit_answers({0: list(asked.answers.values())}, config.order, self.models[0].real_vocabulary)
        wanted = how.rows if tokens == how.lengths[0] else how.long_rows
        entries = [Entry(row=row, acceptance=a) for row in wanted for a in how.acceptances]
        return self._ladder(asked, entries, self._pair(asked, tokens, text), "imposed", folder)

    def beside(self, folder: Path) -> dict[str, Any]:
        """Phase 1 of the drafter's model beside the target's prefill: the window, and what each costs the other."""
        config = self.config
        asked = self._made_answers(config.max_new_tokens, 1)
        pair = self._pair(asked, config.max_new_tokens, {})
        return asdict(measure_contention(pair, asked.prompts[0], drafted=config.prefill_draft_len, repeats=7))

    def exact(self, folder: Path) -> dict[str, Any]:
        """The target's own answers, alone and with an oracle's drafts: how many differ, and what exactness costs."""
        config = self.config
        exact = replace(config.engine, exact=True, lengths=(config.gamma + 1,))
        engines = {"engine": config.engine, "exact": exact}
        return {name: self._own_answers(engine, self._asked_exactly) for name, engine in engines.items()}

    @property
    def _asked_exactly(self) -> list[Prompt]:
        """Prompts about one clip, no two of them alike."""
        config, clip = self.config, self.clip
        count = config.exact_answers if self.quantisation.format == "none" else config.quantised_exact_answers
        questions = [f"{QUESTIONS[n % len(QUESTIONS)]} ({n})" for n in range(count)]
        return [Prompt(clip=clip, question=question) for question in questions]

    def _own_answers(self, engine: Any, prompts: Sequence[Prompt]) -> dict[str, Any]:
        from torch_bridge.verifier import SharedVerifier

        config, target = self.config, self.models[0]
        verifier = SharedVerifier(target, engine.session(target, self._room, keep_visual=True))
        how = LiveConfig(gamma=config.gamma, max_new_tokens=config.max_new_tokens)
        seconds, wrong = {"alone": 0.0, "drafted": 0.0}, list[dict[str, int]]()
        verifier.warm(prompts[0])
        for number, prompt in enumerate(progress(prompts, total=len(prompts), label=engine.words)):
            alone = decode_plain(verifier, prompt, config.max_new_tokens)
            oracle = Oracle(lambda _, ids=alone.ids: ids, config.exact_acceptance, 0, vocabulary=target.real_vocabulary)
            drafted = decode(verifier, _WhileKnown(oracle, alone.ids), prompt, how)
            seconds["alone"] += alone.seconds["decode"]
            seconds["drafted"] += drafted.seconds["decode"]
            first = next((n for n, (a, b) in enumerate(zip(alone.ids, drafted.ids, strict=True)) if a != b), None)
            wrong += [] if first is None else [{"answer": number, "first": first}]
        tokens = config.max_new_tokens * len(prompts)
        return {"answers": len(prompts), "tokens": tokens, "diverged": wrong, "decode_seconds": seconds}

    @property
    def _room(self) -> int:
        """Tokens that every static cache holds: of one size, they share what is compiled."""
        return max(self.config.max_new_tokens, *self.config.imposed.lengths) + SPARE

    def _session(self, vlm: Any) -> Any:
        return self.config.engine.session(vlm, self._room)

    def _pair(self, asked: Asked, tokens: int, text: Mapping[str, Drafter], **more: Any) -> LivePair:
        """The pair with `asked` replayed."""
        config = self.config
        lengths = Lengths(gamma=config.gamma, prefill_draft_len=config.prefill_draft_len, max_new_tokens=tokens)
        named = {name for row in (*config.imposed.rows, *config.imposed.long_rows) for name in (row.drafter, row.first)}
        return LivePair(
            self.models,
            lengths,
            text=text,
            adapters={name: self._adapter(name) for name in sorted(named - {None, *TEXT})},
            engine=config.engine,
            decisions=lambda verifier: Replayed(verifier, asked.answers),
            room=self._room,
            **more,
        )

    def _adapter(self, name: str) -> Trained:
        """An adapter of random weights at the pair's width."""
        pairing = "index" if name.endswith("(own)") or name in ("L1", "L2", "L3", "L4") else "synced"
        if name in CONTROLS:
            return Trained(name=name, adapter=CONTROLS[name](), pairing=pairing)
        return Trained(name=name, adapter=make(name.split()[0], self.config.shape.width), pairing=pairing)

    def _made_answers(self, tokens: int, count: int) -> Asked:
        """Answers of random real ids to the made clip."""
        draws = np.random.default_rng(self.config.seed)
        clips = [replace(self.clip, name=f"made-{n}", sequence=f"made-{n}") for n in range(count)]
        prompts = tuple(Prompt(clip=clip, question=QUESTIONS[0], question_index=0) for clip in clips)
        low, high = 3, self.models[0].real_vocabulary
        return Asked(
            clips=f"made-up answers of {tokens} tokens",
            prompts=prompts,
            answers={clip.name: draws.integers(low, high, tokens, dtype=np.int32) for clip in clips},
        )

    def _ladder(self, asked: Asked, entries: Sequence[Entry], pair: LivePair, kind: Any, folder: Path) -> list[Any]:
        config = self.config
        settings = {
            "max_new_tokens": pair.lengths.max_new_tokens,
            "dtype": config.dtype,
            "quantisation": self.quantisation.describe(),
            "engine": config.engine.words,
            "products": "fused" if config.engine.fuses(self.models[0]) else "library",
            "lanes": config.engine.lanes,
            "weights": "random",
            "repeats": config.repeats,
        }
        rows: list[Row] = run_ladder(
            asked, entries, pair, kind=kind, repeats=config.repeats, settings=settings, stage=folder
        )
        return [asdict(row) for row in rows]


class _WhileKnown:
    """An oracle that falls silent once the answer is no longer the one that it knows."""

    name = "oracle"

    def __init__(self, oracle: Oracle, ids: Sequence[int]) -> None:
        self._oracle, self._ids = oracle, np.asarray(ids, np.int32)

    def propose(self, context: Context, gamma: int) -> Draft:
        if not np.array_equal(context.ids, self._ids[: len(context.ids)]):
            return Draft(ids=np.empty(0, np.int32))
        return self._oracle.propose(context, gamma)
