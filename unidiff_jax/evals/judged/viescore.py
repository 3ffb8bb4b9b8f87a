"""Replies of a judge that is asked for JSON with a list of scores, as in VIEScore.

The official code replaces a reply without JSON by `random.randint(0, 10)`, with a reasoning that
begins with GUESSED. Here such a reply is a failure.
"""

import json

from unidiff_jax.evals.judged.suite import number_in

GUESSED = "guess_if_cannot_parse"


def parse_reply(text: str) -> float | None:
    """The smallest score of a reply such as '{"score": [7, 8], "reasoning": "..."}', in [0, 10].

    None where there is no such JSON, or a score that is no number in the range.

    >>> parse_reply('{"score": [7, 8]}'), parse_reply("I cannot help with that.")
    (7.0, None)
    """
    start, end = text.find("{"), text.rfind("}")
    try:
        content = json.loads(text[start : end + 1]) if 0 <= start < end else None
    except ValueError:
        return None
    scores = content.get("score") if isinstance(content, dict) else None
    scores = scores if isinstance(scores, list) else [scores]
    numbers = [number_in(score, low=0, high=10) for score in scores]
    return None if None in numbers or not numbers else min(numbers)
