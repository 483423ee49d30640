"""The program's own options, and what is folded into pieces of configuration."""

import pytest

from mhmoe_mm.command_line.options import folded, split_options


@pytest.mark.parametrize(
    ("given", "result"),
    [
        (["fit", "--model.net.dim", "3"], ["fit", "--model.net.dim", "3"]),
        (["--model.a.b", "null", "x"], ["--config", "{model: {a: {b: null}}}\n", "x"]),
        (["--model.a.b=[1, 2]"], ["--config", "{model: {a: {b: [1, 2]}}}\n"]),
        (
            ["--model.a.b=${data.c}"],
            ["--config", "{model: {init_args: {a: {init_args: {b: '${data.c}'}}}}}\n"],
        ),
        (
            ["--model.init_args.a.b=${data.c}"],
            ["--config", "{model: {init_args: {a: {b: '${data.c}'}}}}\n"],
        ),
        (["--trainer.logger", "null"], ["--trainer.logger", "null"]),
        (["--trainer.a.b+=null"], ["--trainer.a.b+=null"]),
        (["--model.a.b"], ["--model.a.b"]),
    ],
)
def test_only_nested_values_that_are_not_plain_are_folded(given: list[str], result: list[str]):
    assert folded(given) == result


def test_own_options_are_taken_from_anywhere(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MHMOE_PLUGINS", "one,two")
    monkeypatch.delenv("MHMOE_DEBUG", raising=False)
    options = split_options(["fit", "--plugin", "three", "--name", "x", "--plugin=one", "--debug"])
    assert options == (True, ("one", "two", "three"), ["fit", "--name", "x"])
    monkeypatch.setenv("MHMOE_DEBUG", "1")
    assert split_options([]).debug
    monkeypatch.setenv("MHMOE_DEBUG", "0")
    assert not split_options([]).debug


def test_a_file_takes_the_place_of_what_was_there():
    for given in (["--model.net", "b.yaml"], ["--model.net=b.yaml"]):
        assert folded(["fit", "--config", "a.yaml", *given, "--model.net.dim", "7"]) == [
            "fit", "--config", "a.yaml", "--model.net", "null", *given, "--model.net.dim", "7"
        ]  # fmt: skip
    assert folded(["--model.net.layout=c.yaml"]) == [
        "--config", "{model: {net: {layout: null}}}\n", "--model.net.layout=c.yaml"
    ]  # fmt: skip
    assert folded(["--trainer.callbacks+", "b.yaml"]) == ["--trainer.callbacks+", "b.yaml"]
