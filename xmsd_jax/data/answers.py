"""What the two small models are taught to say: a grammar over a scene's facts, in two styles.

The target speaks of layout, colours, light, vehicles and positions; the drafter of motion, counts and
directions. Wording varies with what is visible (place, light, traffic), so that an answer is a function of
scene and question and greedy decoding keeps the variety. `read_facts` reads the asked facts back.
"""

import re
from typing import Any

from xmsd_jax.data import drafter_clauses, target_clauses
from xmsd_jax.data.phrasing import NUMBERS, Facts, pick, sentences
from xmsd_jax.data.world import COLOURS

_COUNTS = "one|two|three|four|five|six|single"


def target_answer(facts: Facts, question_index: int) -> str:
    """The video model's answer to question 0..9: a plan of clauses that depends on question, road and light."""
    plans = target_clauses.PLANS[question_index % len(target_clauses.PLANS)]
    plan = pick(plans, facts["road"], facts["time"], question_index)
    return sentences(plan, target_clauses.CLAUSES, facts, question_index)


def drafter_answer(facts: Facts, question_index: int) -> str:
    """The event model's answer: motion only, no colour and no light."""
    plan = pick(drafter_clauses.PLANS, question_index, facts["camera"])
    return sentences(plan, drafter_clauses.CLAUSES, facts, question_index)


def read_facts(text: str) -> dict[str, Any]:
    """The asked facts a text states, for either style; a fact the text does not state is absent."""
    found: dict[str, Any] = {}
    if match := re.search(rf"\b(?:closest|nearest|front)\b[^.]*?\b({'|'.join(COLOURS)})\b", text):
        found["colour"] = match[1]
    if match := re.search(r"\b(one|two|three|four|single)\b(?: \w+)? vehicles?\b", text):
        found["vehicles"] = 1 if match[1] == "single" else NUMBERS.index(match[1])
    for time, words in target_clauses.TIME_WORDS.items():
        if re.search("|".join(words), text):
            found["time"] = time
    if match := re.search(r"\b(?:closest|nearest|front|strongest|largest)\b[^.]*?\b(left|right)\b", text):
        found["direction"] = match[1]
    if match := re.search(rf"\b({_COUNTS})\b(?: \w+)? (?:moving )?(?:objects?|shapes?|movers?)\b", text):
        found["moving"] = 1 if match[1] == "single" else NUMBERS.index(match[1])
    return found


def true_facts(facts: Facts) -> dict[str, Any]:
    """The ground truth of what `read_facts` can read."""
    nearest = facts["vehicles"][0]
    return {
        "colour": nearest["colour"],
        "vehicles": len(facts["vehicles"]),
        "time": facts["time"],
        "direction": nearest["direction"],
        "moving": facts["moving"],
    }
