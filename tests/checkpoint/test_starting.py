"""Starting from the weights of another training."""

import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file, save_file

from mhmoe_mm.checkpoint import load_weights
from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.ffn import GeluFFN
from mhmoe_mm.models.image_targets import NormalizedPixels
from mhmoe_mm.models.multiway import ReleasedLayout, SharedLayout
from mhmoe_mm.models.released import our_head_names, our_names, resize_positions
from mhmoe_mm.tasks.image_classification import ImageClassification
from mhmoe_mm.tasks.masked_pretraining import MaskedPretraining
from mhmoe_mm.tasks.vqa import VQA
from tests.tasks.batches import PATCH, SEQ, VOCAB, batch, classes, questions, small_net
from tests.tasks.training import FAST, QUIET, loader, train

GOLDEN = Path(__file__).parents[1] / "models/golden/beit3_tiny_heads.safetensors"
ANSWERS = ["red", "blue", "2", "yes", "no", "left", "a dog"]


def dense_net(dim=28, image_size=20, num_layers=2, layout=SharedLayout) -> BEiT3:
    built = layout(dense=lambda width: GeluFFN(width, 29))
    return BEiT3(built, image_size, PATCH, VOCAB, dim, num_layers, 2, max_text=SEQ)


def vqa(net=None, answers=ANSWERS, seed=1, **options) -> VQA:
    torch.manual_seed(seed)
    return VQA(net or small_net(), answers, **(FAST | options))


def weights_of(task) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in task.state_dict().items()}


def own(task) -> dict[str, torch.Tensor]:
    return {name: w for name, w in weights_of(task).items() if name.startswith("net.")}


def equal(some, others) -> bool:
    return all(torch.equal(weight, others[name]) for name, weight in some.items())


@pytest.fixture
def pretrained(tmp_path):
    """A checkpoint of masked pretraining, and its weights."""
    torch.manual_seed(0)
    task = MaskedPretraining(small_net(), NormalizedPixels(PATCH), **FAST)
    train(task, [batch()]).save_checkpoint(tmp_path / "pretrained.ckpt")
    return str(tmp_path / "pretrained.ckpt"), weights_of(task)


def test_a_network_starts_from_a_pretraining_checkpoint_and_its_head_from_scratch(pretrained):
    path, weights = pretrained
    task = vqa()
    before = weights_of(task)
    report = load_weights(task, path)
    assert equal(own(task), weights)
    assert {name.split(".")[0] for name in report.missing} == {"pooler", "head"}
    assert equal({name: task.state_dict()[name] for name in report.missing}, before)
    assert {name.split(".")[0] for name in report.unexpected} == {"text_head", "image_head"}
    assert report.resized == []


def test_a_trainer_loads_the_weights_before_its_first_step_and_says_so(pretrained, said):
    path, weights = pretrained
    task = vqa(init_from=path)
    assert not equal(own(task), weights)
    Trainer(**QUIET).validate(task, loader([questions(3)]), verbose=False)
    assert equal(own(task), weights)
    said = [record.getMessage() for record in said.records]
    for start in ("loaded from", "resized: none", "missing there", "unexpected"):
        assert sum(line.startswith(start) for line in said) == 1, start


def test_a_test_after_a_training_does_not_start_over(pretrained):
    path, weights = pretrained
    task = vqa(init_from=path)
    train(task, [questions(3)] * 2)
    trained = own(task)
    assert not equal(trained, weights)
    Trainer(**QUIET).test(task, loader([questions(3)]), verbose=False)
    assert equal(own(task), trained)


def test_a_restored_checkpoint_is_not_replaced_by_what_its_training_started_from(
    pretrained, tmp_path
):
    path, _ = pretrained
    task = vqa(init_from=path)
    train(task, [questions(3)] * 2).save_checkpoint(tmp_path / "fine.ckpt")
    again = VQA.load_from_checkpoint(
        tmp_path / "fine.ckpt", net=small_net(), answers=ANSWERS, init_from=path, **FAST
    )
    Trainer(**QUIET).test(again, loader([questions(3)]), verbose=False)
    assert equal(own(again), weights_of(task))
    resumed = vqa(init_from=path)
    Trainer(**QUIET).validate(
        resumed, loader([questions(3)]), ckpt_path=tmp_path / "fine.ckpt", verbose=False
    )
    assert equal(own(resumed), weights_of(task))


@pytest.mark.parametrize("prefix", ["net.", ""])
def test_a_safetensors_file_holds_a_task_or_a_network(tmp_path, prefix):
    source = vqa(seed=5)
    weights = {prefix + name: weight for name, weight in source.net.state_dict().items()}
    save_file(weights, tmp_path / "a.safetensors")
    task = vqa()
    load_weights(task, tmp_path / "a.safetensors")
    assert equal(own(task), weights_of(source))


def test_a_head_is_loaded_as_a_whole_or_not_at_all(tmp_path):
    source = vqa(seed=5)
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    same, fewer = vqa(), vqa(answers=ANSWERS[:5])
    before = weights_of(fewer)
    load_weights(same, tmp_path / "a.safetensors")
    assert equal(weights_of(same), weights_of(source))
    report = load_weights(fewer, tmp_path / "a.safetensors")
    assert equal(fewer.pooler.state_dict(), source.pooler.state_dict())
    head = {name: w for name, w in weights_of(fewer).items() if name.startswith("head.")}
    assert equal(head, before)
    assert {"head.dense.weight", "head.out.bias"} <= {*report.missing} & {*report.unexpected}


def test_positions_of_another_image_size_are_interpolated(tmp_path):
    source = vqa(dense_net())
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    torch.manual_seed(3)
    task = ImageClassification(dense_net(image_size=35), 5, **FAST)
    report = load_weights(task, tmp_path / "a.safetensors")
    expected = resize_positions(source.net.image_embedding.position, 7)
    assert torch.equal(task.net.image_embedding.position, expected)
    assert report.resized == ["net.image_embedding.position from 19 to 52 rows"]
    pixel = torch.zeros(2, 3, 35, 35, dtype=torch.uint8)
    task.losses(classes(2)._replace(pixel=pixel))


def test_half_precision_weights_become_those_of_the_task(tmp_path):
    source = vqa(seed=5)
    halved = {name: weight.half() for name, weight in source.state_dict().items()}
    save_file(halved, tmp_path / "a.safetensors")
    task = vqa()
    load_weights(task, tmp_path / "a.safetensors")
    assert task.net.norm["shared"].weight.dtype == torch.float32
    assert equal(weights_of(task), {name: weight.float() for name, weight in halved.items()})


def test_released_names_find_their_places(tmp_path):
    prefix = "vqa/weight/"
    released = {
        name.removeprefix(prefix): weight
        for name, weight in load_file(GOLDEN).items()
        if name.startswith(prefix)
    }
    save_file(released, tmp_path / "beit3.safetensors")
    net = BEiT3(
        ReleasedLayout(dense=lambda dim: GeluFFN(dim, 64)),
        32, 8, 50, 32, 2, 4, 14, normalize_output=False,
    )  # fmt: skip
    task = vqa(net, [str(answer) for answer in range(17)])
    report = load_weights(task, tmp_path / "beit3.safetensors")
    names = our_names(2, normalize_output=False).items()
    ours = {f"beit3.{theirs}": f"net.{name}" for theirs, name in names} | our_head_names("vqa")
    assert report.loaded == sorted(ours.values())
    assert report.missing == report.unexpected == []
    for theirs, name in ours.items():
        assert torch.equal(task.state_dict()[name], released[theirs])


def test_dense_weights_in_a_sparse_network_are_told_apart_as_missing_and_unexpected(tmp_path):
    save_file(vqa(dense_net()).state_dict(), tmp_path / "a.safetensors")
    report = load_weights(vqa(), tmp_path / "a.safetensors")
    assert all("blocks.1.ffn.shared" in name for name in (*report.missing, *report.unexpected))
    assert report.missing
    assert report.unexpected
    assert re.search(r"missing there.*: \d+ \(net.blocks.1.*and \d+ more\)", report.lines()[2])


def test_a_weight_of_another_shape_is_refused_with_its_name_and_both_shapes(tmp_path):
    save_file(vqa(dense_net(dim=34)).state_dict(), tmp_path / "a.safetensors")
    task = vqa(dense_net())
    before = weights_of(task)
    with pytest.raises(
        ValueError,
        match=r"\.cls has the shape \(1, 1, 34\) in .*, but \(1, 1, 28\) here, and \d+ more",
    ):
        load_weights(task, tmp_path / "a.safetensors")
    assert equal(weights_of(task), before)


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


class Harmful:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_what_holds_no_weights_is_refused_in_a_sentence(tmp_path, capsys):
    save_file({"other": torch.zeros(3)}, tmp_path / "other.safetensors")
    torch.save({"state_dict": {}, "extra": Harmful()}, tmp_path / "harmful.ckpt")
    torch.save({"weights": {}}, tmp_path / "foreign.ckpt")
    refused = {
        str(tmp_path / "no.ckpt"): "There are no weights at",
        str(tmp_path): "is a folder",
        str(tmp_path / "other.safetensors"): "has no weight of this network",
        write(tmp_path / "broken.safetensors", b"x" * 31): "holds no weights that can be read",
        write(tmp_path / "broken.ckpt", b"x" * 31): "is neither a checkpoint nor safetensors",
        str(tmp_path / "harmful.ckpt"): "holds no weights that can be read safely",
        str(tmp_path / "foreign.ckpt"): "has no 'state_dict'",
    }
    for path, why in refused.items():
        with pytest.raises(ValueError, match=re.escape(why)):
            load_weights(vqa(), path)
    assert "must not run" not in capsys.readouterr().out


def test_addresses_are_refused_as_the_task_is_built():
    with pytest.raises(ValueError, match=r"download https://example.org/a\.ckpt and name the file"):
        vqa(init_from="https://example.org/a.ckpt")
