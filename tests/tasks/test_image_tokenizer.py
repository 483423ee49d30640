import pytest
import torch
from lightning.pytorch import Trainer

from mhmoe_mm.batches import normalized
from mhmoe_mm.tasks.image_tokenizer import ImageTokenizer
from tests.ranks import run_on_two_ranks
from tests.tasks.batches import PATCHES, pictures
from tests.tasks.tokenizer_ranks import PLAIN, ROWS, STEPS, tokenizer, train
from tests.tasks.training import QUIET, loader, rows, validate


def close(one, other) -> None:
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], atol=2e-5, rtol=1e-4, msg=name)


def test_the_losses_are_one_minus_the_cosine_and_the_distance_from_the_code():
    task = tokenizer().eval()
    task.teacher.load()
    batch = pictures(3)
    predictions, _, _ = task.losses(batch)
    image = normalized(batch.pixel)
    found, wanted = task.net(image), task.teacher(image)
    cosines, distances = [], []
    for row in range(3):
        for patch in range(PATCHES):
            told, said = found.feature[row, patch], wanted[row, patch]
            cosines.append(told @ said / told.norm() / said.norm())
            code = task.net.codebook.code[found.token[row, patch]]
            distances.append((found.vector[row, patch] - code).square().mean())
    torch.testing.assert_close(predictions["distill"].loss, 1 - torch.stack(cosines).mean())
    torch.testing.assert_close(predictions["commitment"].loss, torch.stack(distances).mean())
    assert int(predictions["distill"].predicted) == 3 * PATCHES


def test_codes_start_from_the_first_batch_and_move_with_every_step():
    task, batch = tokenizer(), pictures(ROWS)
    random = task.net.codebook.code.clone()
    task.teacher.load()
    task.losses(batch)
    started = task.net.codebook.code.clone()
    assert task.net.codebook.is_started
    assert not torch.equal(started, random)
    codes = []
    other = tokenizer()
    for step in range(2):
        train(other, [pictures(ROWS, step)])
        codes.append(other.net.codebook.code.clone())
    assert not torch.equal(codes[0], codes[1])
    torch.testing.assert_close(codes[1].norm(dim=1), torch.ones(len(started)))


def test_an_evaluation_neither_starts_nor_moves_the_codes():
    task = tokenizer()
    before = task.net.codebook.code.clone()
    validate(task, pictures(ROWS))
    assert torch.equal(task.net.codebook.code, before)
    assert not task.net.codebook.is_started


def test_accumulated_batches_are_a_step_of_the_codes_as_the_whole_batch_is():
    start = pictures(ROWS, seed=9)
    states = []
    for batches, accumulated in ([pictures(ROWS)], 1), (
        [rows(pictures(ROWS), 0, 3), rows(pictures(ROWS), 3, ROWS)], 2
    ):  # fmt: skip
        task = tokenizer(restart_below=0.0)
        with torch.no_grad():
            task.net.codebook.start(task.net.encode(normalized(start.pixel)))
        train(task, batches, accumulate_grad_batches=accumulated)
        states.append(task.state_dict())
    close(*states)


def test_a_step_that_is_left_out_does_not_move_the_codes():
    task = tokenizer()
    task.teacher.load()
    task.losses(pictures(ROWS))
    before = task.net.codebook.code.clone()
    task.forget_loads()
    task.on_before_optimizer_step(torch.optim.SGD(task.parameters()))
    assert torch.equal(task.net.codebook.code, before)


def test_codes_that_no_patch_has_are_moved():
    task, batch = tokenizer(restart_below=2.0, decay=0.0), pictures(ROWS)
    lost = tokenizer(restart_below=0.0, decay=0.0)
    for one in (task, lost):
        one.net.codebook.started.fill_(True)
        with torch.no_grad():
            mean = one.net.encode(normalized(batch.pixel)).mean(dim=(0, 1))
        one.net.codebook.code.copy_(-mean / mean.norm())[0] *= -1
        train(one, [batch, batch])
    used = [len(one.net.tokens(normalized(batch.pixel)).unique()) for one in (task, lost)]
    assert used[0] >= used[1] + 3  # equal codes are told apart by rounding, so some are chosen


def test_usage_counts_the_codes_of_the_images_that_count():
    task, batch = tokenizer(), pictures(ROWS)
    train(task, [batch])
    half = batch._replace(valid=torch.arange(ROWS) < 2)
    found = validate(task, half, pictures(ROWS, 1)._replace(valid=torch.zeros(ROWS).bool()))
    codes = task.net.tokens(normalized(batch.pixel[:2])).flatten()
    share = codes.bincount(minlength=11) / len(codes)
    assert found["val/codes_used"] == pytest.approx(float((share > 0).float().mean()))
    entropy = -sum(float(p) * float(p.log()) for p in share if p > 0)
    assert found["val/codes_perplexity"] == pytest.approx(2.718281828**entropy, rel=1e-5)
    assert found["val/distill"] == pytest.approx(
        validate(task, rows(batch, 0, 2))["val/distill"], rel=1e-5
    )


def test_training_brings_the_decoder_nearer_to_the_teacher():
    task = tokenizer(commitment=1.0)
    batch = pictures(13)
    before = validate(task, batch)["val/distill"]
    train(task, [batch] * 20)
    assert validate(task, batch)["val/distill"] < 0.7 * before


def test_checkpoints_hold_the_tokenizer_and_not_the_teacher():
    names = tokenizer().state_dict()
    assert {name.split(".")[1] for name in names if name.startswith("net.")} == {
        "encoder", "encode_head", "codebook", "decoder", "decode_head"
    }  # fmt: skip
    assert not [name for name in names if "teacher" in name]


def test_a_teacher_of_other_sizes_is_refused():
    small = tokenizer()
    small.net.feature_dim = 7
    with pytest.raises(ValueError, match=r"has 6 features per patch, but .* set feature_dim=6"):
        Trainer(**QUIET).fit(small, loader([pictures(2)]))
    coarse = tokenizer()
    coarse.net.grid = 2
    with pytest.raises(ValueError, match=r"MeanColours sees images as 4x4 patches, .* as 2x2"):
        Trainer(**QUIET).fit(coarse, loader([pictures(2)]))
    with pytest.raises(ValueError, match=r"decay is a share of a code, in \[0, 1\), got 1"):
        tokenizer(decay=1.0)
    assert isinstance(small, ImageTokenizer)


@pytest.mark.dist
def test_two_ranks_train_the_tokenizer_of_one_process_with_the_whole_batch(tmp_path):
    run_on_two_ranks("tests.tasks.tokenizer_ranks", tmp_path)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    task = tokenizer(optimizer=PLAIN)
    train(task, [pictures(ROWS, step) for step in range(STEPS)])
    close(found[0], found[1])
    close(found[0], task.state_dict())
    for name, weight in tokenizer().state_dict().items():
        assert not torch.equal(task.state_dict()[name], weight), name
