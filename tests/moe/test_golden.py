"""The released layers, to the digit: outputs, balance loss, routing and every gradient."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mhmoe_mm.moe.backends import EveryBackend, GroupedBackend, LoopBackend
from mhmoe_mm.moe.released import ReleasedLayer, from_released, to_released

GOLDEN = Path(__file__).parents[1] / "golden" / "mhmoe.safetensors"
BALANCE_WEIGHT = 0.01  # of the loss that the gradients in the file belong to


def _read():
    with safe_open(GOLDEN, "pt") as file:
        cases = json.loads(file.metadata()["cases"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    for name, case in cases.items():
        mine = {
            k.removeprefix(f"{name}/"): v for k, v in tensors.items() if k.startswith(f"{name}/")
        }
        case["tensor"] = mine
        for group in ("state_dict", "grads", "routing"):
            prefix = f"{group}/"
            case[group] = {
                k.removeprefix(prefix): v for k, v in mine.items() if k.startswith(prefix)
            }
    return cases


CASES = _read()


def settings(case) -> ReleasedLayer:
    config, v1 = case["config"], case["family"] == "v1"
    share = config.get("moe_eval_capacity_token_fraction", -1.0)
    return ReleasedLayer(
        dim=config["decoder_embed_dim"],
        hidden=config["moe_ffn_dim"],
        num_heads=config["mhmoe_heads_number"],
        num_experts=config["moe_expert_count"],
        top_k=config["moe_top_k"],
        version="v1" if v1 else "head",
        activation=config["activation_fn"],
        bias=v1 or not config["no_bias"],
        sub_norm=config["subln"],
        xmoe=config["use_xmoe"],
        eval_share=share if share > 0 else None,
        normalize_gates=v1 or config["gate_normalize"],
        prioritized=False if v1 else config["gate_bpr"],
        second={"all": "always"}.get(policy := config.get("second_expert_policy", "all"), policy),
    )


def layer_of(case, backend):
    layer = settings(case).build()
    layer.moe.experts.backend = backend
    layer.load_state_dict(from_released(case["state_dict"]))
    return layer.train(case["config"]["training"])


@pytest.mark.parametrize(
    "backend", [LoopBackend(), GroupedBackend(3), GroupedBackend(16), EveryBackend()]
)
@pytest.mark.parametrize("name", CASES)
def test_output_and_every_gradient_equal_the_released_layer(name, backend):
    case = CASES[name]
    layer = layer_of(case, backend)
    x = case["tensor"]["x"].requires_grad_()
    x.grad = None
    out, load = layer(x)
    loss = (out * case["tensor"]["probe"]).sum() + BALANCE_WEIGHT * load.balance
    loss.backward()

    torch.testing.assert_close(out, case["tensor"]["out"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(load.balance, case["tensor"]["l_aux"], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(x.grad, case["tensor"]["grad_x"], atol=1e-5, rtol=1e-5)
    theirs = from_released(case["grads"])
    ours = {k: p.grad for k, p in layer.named_parameters()}
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [n for n in CASES if CASES[n]["family"] == "head"])
def test_routing_equals_the_released_gate(name):
    case = CASES[name]
    layer = layer_of(case, LoopBackend())
    cut = layer.head_proj(case["tensor"]["x"]).view(-1, layer.moe.experts.w_in.shape[1])
    plan, load = layer.router(cut, None, None)
    index, location = case["routing"]["indices"].long(), case["routing"]["locations"].long()
    kept = location < case["capacity"]
    expected = torch.where(kept, index, layer.router.num_experts)
    assert torch.equal(plan.expert.view(-1, plan.per_token).T, expected)
    gates = torch.where(kept, case["routing"]["gates"], 0.0)
    torch.testing.assert_close(plan.weight.view(-1, plan.per_token).T, gates)
    assert load.dropped.sum() == case["dropped"]
    torch.testing.assert_close(load.entropy / load.token.sum(), torch.tensor(case["entropy"]))


@pytest.mark.parametrize("name", [n for n in CASES if CASES[n]["family"] == "v1"])
def test_combine_weights_equal_torchscales_gate(name):
    case = CASES[name]
    layer = layer_of(case, LoopBackend())
    cut = layer.head_proj(case["tensor"]["x"]).view(-1, layer.moe.experts.w_in.shape[1])
    plan, _ = layer.router(cut, None, None)
    dense = torch.zeros(len(cut), layer.router.num_experts + 1)
    dense.index_put_((plan.token, plan.expert), plan.weight.detach(), accumulate=True)
    torch.testing.assert_close(dense[:, :-1], case["routing"]["combine"])


@pytest.mark.parametrize("name", CASES)
def test_released_names_map_one_to_one_and_back(name):
    state = CASES[name]["state_dict"]
    back = to_released(from_released(state))
    assert back.keys() == {key.removeprefix("moe.") for key in state}
    for key, tensor in state.items():
        assert torch.equal(back[key.removeprefix("moe.")], tensor)


def test_an_unknown_tensor_and_a_missing_expert_are_refused():
    with pytest.raises(ValueError, match=r"'lora_A' is not a tensor"):
        from_released({"lora_A": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"numbered \[0, 2\]"):
        from_released({f"experts.{i}.fc1.weight": torch.zeros(2, 3) for i in (0, 2)})
