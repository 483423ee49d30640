"""The captions of a stored sample."""

import json

from tools.build_shards.errors import InputError
from tools.build_shards.reading import StoredSample
from tools.build_shards.source import UNKNOWN_LANGUAGE

TEXT_MEMBERS = frozenset({"txt", "json"})


def captions_in(sample: StoredSample) -> dict[str, list[str]]:
    """Language code -> captions: those of the .json, else the lines of the .txt as `und`."""
    about = sample.members.get("json")
    if about is not None:
        try:
            captions = json.loads(about).get("captions")
        except (ValueError, AttributeError, RecursionError) as error:
            raise InputError(f"{sample.where}: the .json is not an object ({error}).") from error
        if captions is not None:
            return _valid(captions, sample.where)
    try:
        lines = sample.members.get("txt", b"").decode().split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{sample.where}: the .txt is not UTF-8.") from error
    lines = [line.strip() for line in lines if line.strip()]
    return {UNKNOWN_LANGUAGE: lines} if lines else {}


def _valid(captions: object, where: str) -> dict[str, list[str]]:
    whole = isinstance(captions, dict) and all(
        isinstance(texts, list) and all(isinstance(text, str) for text in texts)
        for texts in captions.values()
    )
    if not whole:
        raise InputError(f'{where}: "captions" must map language codes to lists of texts.')
    assert isinstance(captions, dict)
    return captions
