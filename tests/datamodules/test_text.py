from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from datamodules.loading import Loading
from datamodules.mixture import Mixture
from datamodules.text import LanguageDataModule, TextSource
from mhmoe_mm.batches import IGNORED, LanguageBatch
from tests.datamodules.text_files import letter_tokenizer, some_texts, write_tokens

COUNTS = {"cs": 17, "de": 83, "en": 211}
CONTEXT = 11


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    tokenizer = letter_tokenizer(folder / "tokenizer.json")
    for number, (language, count) in enumerate(COUNTS.items()):
        for split, share in (("train", 1), ("val", 3)):
            texts = some_texts(count // share, seed=10 * number + share)
            path = folder / split / f"{language}.safetensors"
            write_tokens(path, tokenizer, texts, language)
    return folder


def module(corpus, batch_size=5, **options) -> LanguageDataModule:
    source = {
        split: TextSource(str(corpus / split), batch_size, CONTEXT) for split in ("train", "val")
    }
    tokenizer = options.pop("tokenizer", str(corpus / "tokenizer.json"))
    return LanguageDataModule(**{**source, **options}, tokenizer=tokenizer)


def equal(one: LanguageBatch, other: LanguageBatch) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(one, other, strict=True)
    )


def keys(batches) -> list[str]:
    return [key for batch in batches for key in batch.key]


def test_a_batch_is_what_the_contract_says(corpus):
    batch = next(iter(module(corpus).training_loader()))
    assert isinstance(batch, LanguageBatch)
    for field in (batch.token, batch.target, batch.document):
        assert (field.shape, field.dtype) == ((5, CONTEXT), torch.int64)
    assert batch.num_bytes.shape == batch.language.shape == (5,)
    assert batch.languages == ("cs", "de", "en")
    for row, key in enumerate(batch.key):
        assert f"train/{batch.languages[batch.language[row]]}.safetensors:" in key
    assert batch.valid.all()
    # The targets are the tokens, one place on.
    predicted = batch.target[:, :-1] != IGNORED
    assert torch.equal(batch.target[:, :-1][predicted], batch.token[:, 1:][predicted])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_evaluation_sees_every_row_once_over_all_ranks(corpus, world):
    ranks = [list(module(corpus).evaluation_loader("val", r, world)) for r in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    seen = [
        key
        for batches in ranks
        for batch in batches
        for key, valid in zip(batch.key, batch.valid.tolist(), strict=True)
        if valid
    ]
    assert len(set(seen)) == len(seen)
    plain = [batch for batch in module(corpus, batch_size=1).evaluation_loader("val")]
    assert set(seen) == set(keys(plain))
    tokens = sum(int((batch.target != IGNORED).sum()) for batch in plain)
    assert tokens == sum(len(file) for file in module_files(corpus, "val"))


def module_files(corpus, split):
    data = module(corpus)
    data.setup("fit")
    return data._files[split]


def test_an_epoch_in_proportion_has_every_row_once_and_the_next_another_order(corpus):
    data = module(corpus, batch_size=1)
    loader = data.training_loader()
    epochs = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        epochs.append(keys(loader))
    total = sum(-(-len(file) // CONTEXT) for file in data._files["train"])
    for seen in epochs:
        assert len(set(seen)) == len(seen) == total
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("mixture", [Mixture(), Mixture(temperature=3.0)])
@pytest.mark.parametrize("loading", [Loading(threads=3), Loading(workers=2), Loading(threads=0)])
def test_batches_do_not_depend_on_how_they_are_made(corpus, mixture, loading):
    plain = list(module(corpus, mixture=mixture).training_loader())
    other = list(module(corpus, mixture=mixture, loading=loading).training_loader())
    assert len(plain) == len(other) > 3
    assert all(map(equal, plain, other))


@pytest.mark.parametrize("mixture", [Mixture(), Mixture(temperature=3.0)])
@pytest.mark.parametrize("world", [1, 2])
def test_a_run_that_is_resumed_goes_on_at_the_very_row(corpus, mixture, world):
    whole = module(corpus, batch_size=6 // world, mixture=mixture)
    loader = whole.training_loader()
    loader.sampler.set_epoch(2)
    expected = keys(loader) if world == 1 else None
    first = module(corpus, batch_size=6, mixture=mixture)
    loader = first.training_loader()
    loader.sampler.set_epoch(2)
    batches = iter(loader)
    before = keys([next(batches) for _ in range(3)])
    state = first.state_dict()
    after = []
    ranks = []
    for rank in range(world):
        resumed = module(corpus, batch_size=6 // world, mixture=mixture)
        resumed.load_state_dict(state)
        ranks.append(list(resumed.training_loader(rank, world)))
    for step in zip(*ranks, strict=True):
        rows = [batch.key for batch in step]
        after += [key for together in zip(*rows, strict=True) for key in together]
    rest = keys(batches)
    assert after == rest
    if expected is not None:
        assert before + after == expected


def test_a_mixture_gives_each_language_its_share(corpus):
    weights = {"cs": 2.0, "de": 1.0, "en": 1.0}
    data = module(corpus, batch_size=1, mixture=Mixture(weights=weights))
    loader = data.training_loader()
    count = Counter()
    for epoch in range(6):
        loader.sampler.set_epoch(epoch)
        count.update(key.split("/")[-1].split(".")[0] for key in keys(loader))
    for language, weight in weights.items():
        assert count[language] / count.total() == pytest.approx(weight / 4, abs=0.02)


def test_only_the_languages_that_are_named_are_read(corpus):
    source = TextSource(str(corpus / "train"), 3, CONTEXT, languages=["en", "cs"])
    batches = list(module(corpus, train=source, val=None).training_loader())
    assert batches[0].languages == ("en", "cs")
    assert {key.split("/")[-1].split(".")[0] for key in keys(batches)} == {"en", "cs"}


def test_all_splits_of_a_run_number_the_languages_alike(corpus):
    source = TextSource(str(corpus / "train"), 3, CONTEXT, languages=["en"])
    data = module(corpus, train=source)
    train, val = next(iter(data.training_loader())), next(iter(data.evaluation_loader("val")))
    assert train.languages == val.languages == ("en", "cs", "de")


def test_bad_input_is_told_in_a_sentence(corpus, tmp_path):
    (tmp_path / "empty").mkdir()
    source = TextSource(str(tmp_path / "empty"), 3, CONTEXT)
    with pytest.raises(ValueError, match=r"No token files match .*build_corpus"):
        module(corpus, train=source).setup("fit")
    source = TextSource(str(corpus / "train"), 3, CONTEXT, languages=["en", "fr"])
    with pytest.raises(ValueError, match=r"train\.languages: .* in fr; .* has cs de en"):
        module(corpus, train=source).setup("fit")
    other = letter_tokenizer(tmp_path / "other.json", "abc")
    with pytest.raises(ValueError, match=r"another tokenizer .* than .*other\.json"):
        module(corpus, tokenizer=str(other)).setup("fit")
    with pytest.raises(ValueError, match="fewer than one step takes"):
        module(corpus, batch_size=100_000).setup("fit")
    mixture = Mixture(weights={"de": 1.0, "fr": 2.0})
    with pytest.raises(ValueError, match=r"weights are of de fr.*cs de en"):
        module(corpus, mixture=mixture).setup("fit")
    with pytest.raises(ValueError, match="At least one"):
        module(corpus, train=None, val=None)
    for options in ({"batch_size": 0}, {"context": 0}, {"languages": []}):
        with pytest.raises(ValueError, match="at least"):
            TextSource(**{"files": "x", "batch_size": 1, "context": 1, **options})


def test_a_net_that_cannot_read_the_rows_is_refused_before_training(corpus):
    data = module(corpus)
    data.trainer = SimpleNamespace(
        lightning_module=SimpleNamespace(net=SimpleNamespace(vocab_size=99, max_text=CONTEXT - 1))
    )
    with pytest.raises(ValueError, match=r"train\.context is 11, .*max_text=10"):
        data.setup("fit")
    data.trainer.lightning_module.net = SimpleNamespace(vocab_size=7, max_text=CONTEXT)
    with pytest.raises(ValueError, match="vocab_size is 7"):
        data.setup("fit")


def test_a_checkpoint_of_another_tokenizer_is_refused(corpus, tmp_path):
    state = module(corpus).state_dict()
    state["tokenizer"] = "0" * 64
    with pytest.raises(ValueError, match="another tokenizer"):
        module(corpus).load_state_dict(state)
