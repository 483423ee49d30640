"""The released heads' outputs, reproduced with their weights under our names."""

import pytest
import torch

from mhmoe_mm.batches import IGNORED
from mhmoe_mm.losses import (
    caption_cross_entropy,
    contrastive,
    masked_cross_entropy,
    soft_binary_cross_entropy,
)
from mhmoe_mm.models.caption_reader import Reader, caption_visible
from mhmoe_mm.models.heads import (
    AnswerHead,
    ClassHead,
    EmbeddingHead,
    MaskedLanguageHead,
    Pooler,
    TwoImageHead,
)
from mhmoe_mm.models.released import our_head_names
from tests.models.test_golden import SIZES, close, read, released_net

MASK = 49
DIM, VOCAB = SIZES["dim"], SIZES["vocab_size"]
VALID = torch.ones(3, dtype=torch.bool)


@pytest.fixture(scope="module")
def heads():
    groups = {}
    for case, values in read("beit3_tiny_heads.safetensors").items():
        name, _, kind = case.partition("/")
        groups.setdefault(name, {})[kind or "value"] = values
    return groups


@pytest.fixture(scope="module")
def given():
    return read("beit3_tiny.safetensors")["input"]


def released(heads, model: str, **modules: torch.nn.Module) -> torch.nn.ModuleDict:
    """The modules, under the names that they have in our task, with the released weights."""
    task = torch.nn.ModuleDict(modules)
    weights = heads[model]["weight"]
    names = our_head_names(model)
    assert names.keys() == {name for name in weights if not name.startswith("beit3.")}
    state = {ours: weights[theirs] for theirs, ours in names.items() if ours != "logit_scale"}
    task.load_state_dict(state)
    return task.eval()


def net_of(heads, model: str, **options):
    weights = heads[model]["weight"]
    prefix = "beit3."
    return released_net(
        {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)},
        **options,
    )


@torch.no_grad()
def test_answers_their_loss_and_their_score(heads, given):
    case = heads["vqa"]["value"]
    task = released(heads, "vqa", pooler=Pooler(DIM), head=AnswerHead(DIM, 17))
    net = net_of(heads, "vqa", normalize_output=False)
    encoded = net(given["image"], given["text"], given["pad"])
    logits = task["head"](task["pooler"](encoded.hidden[:, 0]))
    close(logits, case["logits"])
    close(soft_binary_cross_entropy(logits, case["labels"], VALID).loss, case["loss"])
    score = case["labels"].gather(1, logits.argmax(dim=1, keepdim=True)).mean()
    close(100 * score, case["score"])


@torch.no_grad()
def test_the_vectors_of_retrieval_and_their_loss(heads, given):
    case = heads["retrieval"]["value"]
    parts = {"vision_head": EmbeddingHead(DIM), "language_head": EmbeddingHead(DIM)}
    task, net = released(heads, "retrieval", **parts), net_of(heads, "retrieval")
    image = task["vision_head"](net(given["image"], None).hidden[:, 0])
    text = task["language_head"](net(None, given["text"], given["pad"]).hidden[:, 0])
    close(image, case["vision_cls"])
    close(text, case["language_cls"])
    scale = heads["retrieval"]["weight"]["logit_scale"].exp()
    close(scale * image @ text.T, case["logits_per_image"])
    close(contrastive(image, text, scale, VALID).loss, case["loss"])


@torch.no_grad()
def test_sentences_about_two_images(heads):
    case, hidden = heads["nlvr2"]["value"], heads["nlvr2"]["hidden"]
    task = released(heads, "nlvr2", head=TwoImageHead(DIM))
    split = 17
    rows = [hidden[side][:, at] for side in ("left", "right") for at in (0, split)]
    logits = task["head"](torch.cat(rows, dim=1))
    close(logits, case["logits"])
    close(masked_cross_entropy(logits, case["label"]).loss, case["loss"])


@torch.no_grad()
def test_classes_of_images(heads):
    case = heads["imagenet"]["value"]
    task = released(heads, "imagenet", head=ClassHead(DIM, 10))
    close(task["head"](case["hidden"][:, 1:]), case["logits"])


@torch.no_grad()
def test_masked_tokens_of_captions_and_their_loss(heads, given):
    case = heads["captioning"]["value"]
    task = released(heads, "captioning", text_head=MaskedLanguageHead(DIM, VOCAB))
    text, masked = case["masked_text"], case["language_masked_pos"].bool()
    visible = caption_visible(17, text.shape[1])
    encoded = net_of(heads, "captioning")(given["image"], text, given["pad"], visible=visible)
    logits = task["text_head"](encoded.hidden[:, encoded.split :])
    close(logits[masked], case["logits_masked"])
    close(logits, case["logits_all"])
    target = given["text"][masked]
    assert IGNORED not in target
    for drop, name in ((0.0, "loss_ls0p1"), (0.2, "loss_ls0p1_dropworst0p2")):
        close(caption_cross_entropy(logits[masked], target, 0.1, drop).loss, case[name])


@torch.no_grad()
def test_captions_written_greedily_with_a_cache(heads, given):
    case = heads["captioning"]["value"]
    task = released(heads, "captioning", text_head=MaskedLanguageHead(DIM, VOCAB))
    reader = Reader(net_of(heads, "captioning"), task["text_head"], mask=MASK)
    token = torch.zeros(3, dtype=torch.long)
    for step in range(case["greedy_tokens"].shape[1]):
        score = reader.step(token) if step else reader.start(given["image"], token)
        close(score, case["greedy_step_logits"][:, step])
        token = score.argmax(dim=1)
        assert torch.equal(token, case["greedy_tokens"][:, step])


def test_a_model_that_was_not_released_is_refused():
    with pytest.raises(ValueError, match="No released model is called 'vizwiz'"):
        our_head_names("vizwiz")
