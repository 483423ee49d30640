import json
import random

import numpy as np
import pytest
import torch

from datamodules.decoders import Limits
from datamodules.errors import SampleError
from datamodules.language import choose_caption
from datamodules.masking import Masking, TextMask
from datamodules.reading import Sample
from datamodules.samples import (
    ImageSample,
    PairCollate,
    PairSample,
    TextCollate,
    TextSample,
    collate_images,
)
from datamodules.transforms import View
from mhmoe_mm.batches import IGNORED
from mhmoe_mm.inputs.tokenization import Tokenizer
from tests.datamodules.conftest import members

VIEW = View(size=32, patch=8)


def sample(number: int = 3, **changes) -> Sample:
    content = members(number) | changes
    content = {extension: data for extension, data in content.items() if data is not None}
    sizes = {extension: len(data) for extension, data in content.items()}

    def fetch(extension):
        return np.frombuffer(bytearray(content[extension]), dtype=np.uint8)

    return Sample("dir/00000.tar", f"{number:09d}", sizes, fetch, Limits())


def captions(**languages) -> bytes:
    return json.dumps({"captions": languages}).encode()


def rows(tokenizer_path, max_tokens=13):
    tokenizer = Tokenizer(tokenizer_path)
    text = TextSample(None, max_tokens, TextMask(tokenizer, 0.5, Masking()))
    return tokenizer, ImageSample(VIEW, Masking(), training=True), text


def test_without_languages_a_line_of_the_text_is_drawn():
    drawn = {choose_caption(sample(), None, random.Random(seed)) for seed in range(50)}
    assert drawn == {("blue blue blue star", "und"), ("a big star", "und")}


def test_with_languages_one_that_is_there_is_drawn():
    drawn = [choose_caption(sample(), ["en", "de", "fr"], random.Random(s))[1] for s in range(400)]
    assert drawn.count("de") == pytest.approx(200, abs=50)
    assert set(drawn) == {"en", "de"}


@pytest.mark.parametrize(
    ("languages", "changes", "cause"),
    [
        (["fr", "it"], {}, r"000000003\.json has no caption in fr, it; it has: en, de"),
        (["en"], {"json": captions(en=["  "], de=["x"])}, "no caption in en; it has: de"),
        (["en"], {"json": b"{}"}, 'no field "captions"'),
        (["en"], {"json": b"[]"}, 'no field "captions"'),
        (["en"], {"json": captions(en="one")}, "not of the form"),
        (["en"], {"json": None}, r"no member \.json, only \.png, \.txt"),
        (None, {"txt": b" \n\n"}, r"000000003\.txt is empty"),
        (None, {"txt": None}, r"no member \.txt, only \.png, \.json"),
    ],
)
def test_a_missing_caption_is_named(languages, changes, cause):
    with pytest.raises(SampleError, match=rf"dir/00000\.tar: .*{cause}"):
        choose_caption(sample(**changes), languages, random.Random(0))


def test_a_caption_without_known_words_is_an_error(tokenizer_path):
    _, _, text = rows(tokenizer_path)
    with pytest.raises(SampleError, match=r"no token that could be predicted in 'zebra'"):
        text(sample(txt=b"zebra"), random.Random(0))


def test_texts_are_padded_and_padding_is_never_predicted(tokenizer_path):
    tokenizer, _, text = rows(tokenizer_path)
    made = [text(sample(txt=line), random.Random(0)) for line in (b"red", b"a " * 9, b"a " * 99)]
    batch = TextCollate(tokenizer, 13)(made)
    assert batch.token.shape == (3, 13)
    assert (~batch.pad).sum(1).tolist() == [3, 11, 13]
    assert (batch.token[batch.pad] == tokenizer.pad).all()
    assert (batch.target[batch.pad] == IGNORED).all()
    assert (batch.token[:, 0] == tokenizer.bos).all()
    assert batch.key == ["00000.tar/000000003"] * 3
    assert TextCollate(tokenizer, 13)(made[:1]).token.shape == (1, 8)


def test_a_pair_is_its_image_and_its_text(tokenizer_path):
    tokenizer, image, text = rows(tokenizer_path)
    made = [PairSample(image, text)(sample(n), random.Random(n)) for n in (3, 5)]
    batch = PairCollate(TextCollate(tokenizer, 13))(made)
    assert batch.pixel.shape == (2, 3, 32, 32)
    assert batch.pixel.dtype == torch.uint8
    assert batch.masked.sum(1).tolist() == [int(0.4 * 16)] * 2
    assert ((batch.target != IGNORED).sum(1) > 0).all()
    assert torch.equal(batch.pixel, collate_images([row.image for row in made]).pixel)


def test_padding_rows_count_nothing(tokenizer_path):
    _, image, text = rows(tokenizer_path)
    row = PairSample(image, text)(sample(), random.Random(0)).silent()
    assert not row.image.masked.any()
    assert set(row.text.target) == {IGNORED}
