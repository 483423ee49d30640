"""The answer vocabulary of a question-answering data set: `answers.json`, a list in order.

As for VQAv2: the usual answers of all annotated questions, normalised, those given `--min-answers`
times or more, in the order in which they first appear. An answer's place is its class.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from mhmoe_mm.metrics.vqa_answers import normalized
from mhmoe_mm.storage.whole import file_sha256
from tools.build_shards.annotations import read_json
from tools.build_shards.errors import InputError

ANSWERS = "answers.json"


def answer_list(
    given: Iterable[str], min_answers: int, fixed: Path | None
) -> tuple[tuple[str, ...], dict[str, str | int]]:
    """The vocabulary, and what it was made from for the card: `fixed`, or the answers `given`."""
    if fixed is not None:
        return read_answers(fixed), {f"--answers {fixed.name}": file_sha256(fixed)}
    if min_answers < 1:
        raise InputError(f"--min-answers {min_answers} must be at least 1.")
    counts = Counter(normalized(answer) for answer in given)
    kept = tuple(answer for answer, count in counts.items() if answer and count >= min_answers)
    if counts and not kept:
        answer, most = counts.most_common(1)[0]
        raise InputError(
            f"--min-answers {min_answers} leaves no answer: the most frequent of {len(counts)},"
            f" '{answer}', is given {most} times."
        )
    return kept, {"min_answers": min_answers}


def read_answers(path: Path) -> tuple[str, ...]:
    """An `answers.json` that is there already."""
    answers = read_json(path)
    if not isinstance(answers, list) or not all(isinstance(a, str) and a for a in answers):
        raise InputError(f"{path} is not a list of answers.")
    if len(set(answers)) < len(answers):
        raise InputError(f"{path} lists '{Counter(answers).most_common(1)[0][0]}' twice.")
    return tuple(answers)
