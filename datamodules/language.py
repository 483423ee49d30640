"""Which caption of a sample is used, and in which language it is."""

import random

from datamodules.reading import Sample

UNKNOWN = "und"
"""The language code of a text whose language nobody wrote down (ISO 639)."""


def choose_caption(
    sample: Sample, languages: list[str] | None, choice: random.Random
) -> tuple[str, str]:
    """(caption, language): a line of `.txt`, or, when `languages` is given, a caption of `.json` in
    one of them; both drawn by `choice`, each language that the sample has with equal chance.
    """
    if languages is None:
        return choice.choice(_lines(sample)), UNKNOWN
    captions = _captions_in(sample, languages)
    language = choice.choice(list(captions))
    return choice.choice(captions[language]), language


def all_captions(sample: Sample, languages: list[str] | None) -> list[str]:
    """What `choose_caption` draws from, in order."""
    if languages is None:
        return _lines(sample)
    captions = _captions_in(sample, languages)
    return [caption for texts in captions.values() for caption in texts]


def _lines(sample: Sample) -> list[str]:
    lines = [line.strip() for line in sample.decode("txt").splitlines() if line.strip()]
    if not lines:
        raise sample.error("caption", "is empty", "txt")
    return lines


def _captions_in(sample: Sample, languages: list[str]) -> dict[str, list[str]]:
    """The captions in those of `languages` that the sample has, in this order."""
    captions = _captions(sample)
    usable = {language: captions[language] for language in languages if captions.get(language)}
    if not usable:
        there = ", ".join(language for language in captions if captions[language]) or "none"
        wanted = ", ".join(languages)
        raise sample.error("language", f"has no caption in {wanted}; it has: {there}", "json")
    return usable


def _captions(sample: Sample) -> dict[str, list[str]]:
    """The captions of `.json` by language, without empty ones."""
    table = sample.decode("json")
    captions = table.get("captions") if isinstance(table, dict) else None
    if captions is None:
        raise sample.error("caption", 'has no field "captions"', "json")
    right = isinstance(captions, dict) and all(
        isinstance(texts, list) and all(isinstance(text, str) for text in texts)
        for texts in captions.values()
    )
    if not right:
        form = '{"en": ["..."], ...}'
        raise sample.error(
            "caption", f'has a field "captions" that is not of the form {form}', "json"
        )
    return {
        language: [text.strip() for text in texts if text.strip()]
        for language, texts in captions.items()
    }
