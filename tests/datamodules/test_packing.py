import pickle
from collections import Counter

import numpy as np
import pytest
from safetensors.numpy import load_file

from datamodules.members import ShardError
from datamodules.packing import PackedRows
from datamodules.token_files import TokenFile, expand_files
from mhmoe_mm.batches import IGNORED
from mhmoe_mm.inputs.tokenization import Tokenizer
from tests.datamodules.text_files import letter_tokenizer, some_texts, write_tokens

CONTEXT = 7


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    return letter_tokenizer(tmp_path_factory.mktemp("letters") / "tokenizer.json")


@pytest.fixture(scope="module")
def texts():
    return [*some_texts(41, seed=1), "é", "\n"]


@pytest.fixture(scope="module")
def file(tokenizer_file, texts):
    return write_tokens(tokenizer_file.parent / "en.safetensors", tokenizer_file, texts)


def predicted(row):
    return row.target[row.target != IGNORED].tolist()


def stream_of(texts, tokenizer):
    """The documents one after the other, the slow way."""
    return [i for ids in tokenizer.encode_documents(texts) for i in [*ids, tokenizer.eos]]


def test_rows_in_order_predict_the_stream_each_token_from_the_one_before(
    file, texts, tokenizer_file
):
    rows = PackedRows([file], CONTEXT, None, True)
    stream = stream_of(texts, Tokenizer(tokenizer_file))
    all_rows = [rows[number] for number in range(rows.total)]
    assert [token for row in all_rows for token in predicted(row)] == stream
    read = [token for row in all_rows for token in row.token.tolist()]
    assert read[: len(stream)] == [stream[-1], *stream[:-1]]
    assert {len(row.token) for row in all_rows} == {CONTEXT}
    assert len(all_rows) == -(-len(stream) // CONTEXT)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_a_training_epoch_predicts_every_token_once_in_rows_cut_anew(file, shuffle, epoch):
    plain, rows = PackedRows([file], CONTEXT, None, True), PackedRows([file], CONTEXT, 3, shuffle)
    wanted = Counter(token for n in range(plain.total) for token in predicted(plain[n]))
    numbers = range(epoch * rows.total, (epoch + 1) * rows.total)
    seen = [rows[number] for number in numbers]
    assert Counter(token for row in seen for token in predicted(row)) == wanted
    assert sum(row.num_bytes for row in seen) == sum(plain[n].num_bytes for n in range(plain.total))
    cuts = [[tuple(rows[e * rows.total + n].token) for n in range(rows.total)] for e in (epoch, 9)]
    assert cuts[0] != cuts[1]


def test_shuffled_documents_stay_whole(file, texts, tokenizer_file):
    rows = PackedRows([file], CONTEXT, 3, True)
    tokenizer = Tokenizer(tokenizer_file)
    for epoch in (0, 4):
        targets = [
            t for row in range(rows.total) for t in predicted(rows[epoch * rows.total + row])
        ]
        first = targets.index(tokenizer.eos) + 1
        circle = targets[first:] + targets[:first]
        documents, begun = [], []
        for token in circle:
            if token == tokenizer.eos:
                documents.append(tokenizer.decode(begun))
                begun = []
            else:
                begun.append(token)
        assert Counter(documents) == Counter(texts)
        assert documents != texts


def test_a_document_begins_where_the_end_of_the_one_before_is_read(file):
    rows = PackedRows([file], CONTEXT, 3, True)
    for number in range(rows.total):
        row = rows[number]
        expected, current = [], 0
        for place, token in enumerate(row.token):
            current += place > 0 and token == file.end
            expected.append(current)
        assert row.document.tolist() == expected


def test_bytes_are_those_of_the_texts_with_any_tokenizer(file, texts, tokenizer_path, tmp_path):
    plain = PackedRows([file], CONTEXT, None, False)
    total = sum(plain[number].num_bytes for number in range(plain.total))
    assert total == sum(len(text.encode()) for text in texts)
    # A tokenizer of words loses the blanks between them, and what it does not know.
    lossy = ["a  red star ", "größe", "ein roter stern"] * 5
    words = write_tokens(tmp_path / "en.safetensors", tokenizer_path, lossy)
    for seed in (None, 2):
        rows = PackedRows([words], 5, seed, True)
        total = sum(rows[number].num_bytes for number in range(rows.total))
        assert total == sum(len(text.encode()) for text in lossy)


def test_the_bytes_of_a_row_are_those_that_its_targets_spell(file, tokenizer_file):
    tokenizer = Tokenizer(tokenizer_file)
    rows = PackedRows([file], CONTEXT, 3, True)
    for number in range(2 * rows.total):
        row = rows[number]
        assert row.num_bytes == len(tokenizer.decode(predicted(row)).encode())


def test_several_files_are_rows_of_their_own(file, tokenizer_file, tmp_path):
    other = write_tokens(tmp_path / "de.safetensors", tokenizer_file, some_texts(5, 2), "de")
    rows = PackedRows([file, other], CONTEXT, None, False)
    alone = [PackedRows([each], CONTEXT, None, False) for each in (file, other)]
    expected = [each[n] for each in alone for n in range(each.total)]
    assert rows.counts == [each.total for each in alone]
    for number, row in enumerate(expected):
        assert rows[number].token.tolist() == row.token.tolist()
        assert (rows[number].key, rows[number].language) == (row.key, row.language)
    assert len({rows[number].key for number in range(rows.total)}) == rows.total


def test_a_context_longer_than_the_stream_goes_round_and_predicts_each_token_once(
    tokenizer_file, tmp_path
):
    tiny = write_tokens(tmp_path / "en.safetensors", tokenizer_file, ["ab", "c"])
    rows = PackedRows([tiny], 13, 1, True)
    assert rows.total == 1
    for epoch in range(4):
        assert len(predicted(rows[epoch])) == 5
        assert len(rows[epoch].token) == 13


def test_a_token_file_is_a_safetensors_file_and_survives_pickling(file, texts):
    content = load_file(file.path)
    assert set(content) == {"token", "document_end", "unspelled", "token_bytes"}
    assert content["token"].dtype == np.uint16
    assert content["document_end"].tolist() == np.cumsum([len(t) + 1 for t in texts]).tolist()
    assert not content["unspelled"].any()
    again = pickle.loads(pickle.dumps(file))
    assert (again.read(3, 11)[0] == content["token"][3:11]).all()
    assert len(pickle.dumps(file)) < 500


def test_what_is_no_token_file_is_refused_in_a_sentence(file, tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.path.read_bytes()[:-3])
    with pytest.raises(ShardError, match=r"cut\.safetensors has \d+ bytes instead of \d+; build"):
        TokenFile(cut)
    for content in (b"", b"no header at all", (5).to_bytes(8, "little") + b"[1,2]"):
        cut.write_bytes(content)
        with pytest.raises(ShardError, match="not a safetensors file"):
            TokenFile(cut)
    cut.write_bytes(file.path.read_bytes().replace(b"tokens 1", b"tokens 7"))
    with pytest.raises(ShardError, match="tokens 7"):
        TokenFile(cut)
    with pytest.raises(ShardError, match="cannot be read"):
        TokenFile(tmp_path / "none.safetensors")


def test_files_are_named_by_folder_glob_and_path(file, tmp_path):
    for name in ("de", "en", "fr"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    paths = sorted(tmp_path.glob("*"))
    assert expand_files(str(tmp_path)) == paths
    assert expand_files([str(paths[1]), str(tmp_path / "[df]*.safetensors")]) == [
        paths[1], paths[0], paths[2],
    ]  # fmt: skip
    with pytest.raises(ShardError, match="listed twice"):
        expand_files([str(tmp_path), str(paths[0])])
    with pytest.raises(ShardError, match=r"No token files match .*trian.*holds"):
        expand_files(str(tmp_path / "trian"))
