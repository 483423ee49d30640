import math

import pytest
import torch
import torch.nn.functional as F

from mhmoe_mm.models.codebook import Codebook, nearest, spherical_k_means
from tests.models.two_ranks import ROWS, trained
from tests.ranks import run_on_two_ranks

CODES, DIM = 7, 5


def unit(rows, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, DIM, generator=draw), dim=1)


def made(seed=3):
    torch.manual_seed(seed)
    return Codebook(CODES, DIM)


def test_the_code_of_a_vector_is_the_one_at_the_smallest_angle():
    book, vector = made(), unit(31)
    _, number = book(vector.view(31, 1, DIM))
    for row, chosen in zip(vector, number[:, 0], strict=True):
        angles = [math.acos(max(-1, min(1, float(row @ code)))) for code in book.code]
        assert int(chosen) == angles.index(min(angles))


def test_gradients_pass_codes_unchanged():
    book, vector = made(), unit(31).requires_grad_()
    weight = torch.randn(31, DIM)
    code, number = book(vector)
    assert torch.allclose(code, book.code[number], atol=1e-6)
    (code * weight).sum().backward()
    assert torch.equal(vector.grad, weight)


def test_a_step_moves_a_code_towards_the_mean_of_its_vectors_and_leaves_unchosen_ones():
    book, vector = made(), unit(11, seed=5)
    before = book.code.clone()
    number = book(vector)[1]
    assert len(number.unique()) < CODES
    count = book.step(book.assigned(vector, number), decay=0.9)
    for code in range(CODES):
        own = [row for row, n in zip(vector, number, strict=True) if n == code]
        assert int(count[code]) == len(own)
        if not own:
            assert torch.equal(book.code[code], before[code])
            continue
        mean = sum(own) / len(own)
        moved = 0.9 * before[code] + 0.1 * mean / mean.norm()
        torch.testing.assert_close(book.code[code], moved / moved.norm())


def test_micro_batches_add_up_to_the_step_of_the_whole_batch():
    vector = unit(29)
    whole, cut = made(), made()
    number = whole(vector)[1]
    parts = [cut.assigned(vector[part], number[part]) for part in (slice(13), slice(13, None))]
    whole.step(whole.assigned(vector, number), decay=0.5)
    cut.step(parts[0].plus(parts[1]), decay=0.5)
    torch.testing.assert_close(whole.code, cut.code)
    assert not torch.equal(whole.code, made().code)


def test_k_means_finds_directions_that_stand_apart():
    torch.manual_seed(1)
    direction = torch.eye(DIM)
    vector = direction.repeat_interleave(50, dim=0)
    vector = F.normalize(vector + 0.05 * torch.randn_like(vector), dim=1)
    code = spherical_k_means(vector, 3 * DIM, rounds=10)
    assert (code @ direction.T).max(dim=0).values.min() > 0.99
    torch.testing.assert_close(code.norm(dim=1), torch.ones(3 * DIM))


def test_rounds_of_k_means_only_lower_the_angles():
    vector = unit(211)
    fits = []
    for rounds in range(6):
        torch.manual_seed(2)
        code = spherical_k_means(vector, CODES, rounds)
        fits.append(float((vector * code[nearest(vector, code)]).sum()))
    assert fits == sorted(fits)
    assert fits[-1] > fits[0] + 5


def test_start_needs_as_many_vectors_as_codes_and_is_remembered_by_checkpoints():
    book = made()
    assert not book.is_started
    with pytest.raises(ValueError, match="has 6 patches on all ranks together, from which 7 codes"):
        book.start(unit(6))
    book.start(unit(50))
    other = made(seed=4)
    assert not other.is_started
    other.load_state_dict(book.state_dict())
    assert other.is_started
    assert torch.equal(other.code, book.code)


def test_only_codes_that_are_not_used_restart_at_vectors_far_from_their_code():
    book = made()
    near = F.normalize(book.code[0] + 0.01 * unit(40, seed=2), dim=1)
    far = -book.code[0][None]
    vector = torch.cat([near[:20], far, near[20:]])
    book.code[1:] = book.code[0]  # so that every vector has code 0
    book.recent.copy_(torch.tensor([3.0, 0.2, 3.0, 3.0, 3.0, 3.0, 3.0]))
    before = book.code.clone()
    assert book.restart(vector, torch.zeros(41, dtype=torch.long), below=0.5) == 1
    torch.testing.assert_close(book.code[1:2], far)
    assert torch.equal(book.code[[0, *range(2, CODES)]], before[[0, *range(2, CODES)]])
    assert float(book.recent[1]) == 0.5
    assert book.restart(vector, torch.zeros(41, dtype=torch.long), below=0.5) == 0


def test_restarts_draw_different_vectors_and_no_more_than_there_are():
    book, vector = made(), unit(5)
    book.recent.zero_()
    assert book.restart(vector, book(vector)[1], below=0.5) == 5
    matched = (book.code[:5] @ vector.T).argmax(dim=1)
    assert sorted(matched.tolist()) == list(range(5))


def test_the_recent_use_of_codes_starts_with_k_means_and_follows_the_steps():
    book, vector = made(), unit(50)
    book.start(vector)
    counts = book(vector)[1].bincount(minlength=CODES)
    assert torch.equal(book.recent, counts.float())
    few = unit(3, seed=8)
    now = book.step(book.assigned(few, book(few)[1]), decay=0.9)
    torch.testing.assert_close(book.recent, 0.9 * counts + 0.1 * now.float())


@pytest.mark.dist
def test_two_ranks_have_the_codes_of_one_process_with_all_vectors(tmp_path):
    run_on_two_ranks("tests.models.two_ranks", tmp_path)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    torch.manual_seed(0)  # as rank 0, whose draw counts
    book, counts = trained(slice(None))
    assert torch.equal(found[0]["code"], found[1]["code"])
    torch.testing.assert_close(found[0]["code"], book.code, atol=1e-7, rtol=0)
    assert torch.equal(found[0]["counts"], torch.stack(counts))
    assert counts[0].sum() == ROWS
