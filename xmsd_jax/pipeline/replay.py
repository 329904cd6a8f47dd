"""Recorded answers as prompts: what a benchmark asks when a target's decisions are replayed over another's compute."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from xmsd_jax.data.clips import Clip
from xmsd_jax.decoding.ports import Prompt
from xmsd_jax.pipeline.answers import AnswersConfig, sources, text_prompt
from xmsd_jax.shapes import TokenIds


@dataclass(frozen=True, kw_only=True, eq=False)
class Replay:
    """The tested part of recorded answers, and what text drafters may be fitted on.

    prompts: one an answer, in recording order. answers: by the name of the prompt's clip, as `decoding.replayed`
    reads them. fitted: question index -> answers of the fitted part, which shares none with the tested one.
    """

    prompts: tuple[Prompt, ...]
    answers: Mapping[str, TokenIds]
    fitted: Mapping[int, Sequence[TokenIds]]


def replay_of(config: AnswersConfig, clip: Clip | None = None) -> Replay:
    """Make a prompt for each answer of the tested part.

    Args:
        config: files and parts of fit and test; `block` answers in a row are one sequence (bootstrap cluster).
        clip: stands in for the clips that were not recorded: each prompt has it as an object of its own, under its own
            name and sequence. None is a clip that holds nothing, for a target that looks at nothing.

    Raises:
        UserError: a file is not given or does not fit, or fit and test share records.
    """
    fit, test = sources(config)
    asked = text_prompt(test.question)
    shown, tested = clip or asked.clip, test.part(config.test_part)
    names = [(f"recorded-{row}", f"recorded-block-{row // config.block}") for row in range(len(tested))]
    prompts = [replace(asked, clip=replace(shown, name=name, sequence=sequence)) for name, sequence in names]
    return Replay(
        prompts=tuple(prompts),
        answers={prompt.clip.name: ids for prompt, ids in zip(prompts, tested, strict=True)},
        fitted={asked.question_index: fit.part(config.fit_part)},
    )
