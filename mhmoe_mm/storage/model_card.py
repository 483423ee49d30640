"""The README of a folder that holds a model: for people, with a head that model hubs read."""

from collections.abc import Mapping, Sequence

_CARD = """---
library_name: mhmoe-mm
tags:
{tags}
---

# {name}

{about}

| | |
|---|---|
{rows}
{sections}
{use}

Or start a training of the same network from it: `--model.init_from {name}`. Nothing in this folder
is run: weights are safetensors, everything else is text.
"""
_USE = """```python
import mhmoe_mm

model = mhmoe_mm.load({arguments})
print(model)
```

It can be asked: {methods}."""


TO_FINE_TUNE = "It answers nothing yet: it is there to be fine-tuned."


def model_card(
    name: str,
    about: str,
    rows: Mapping[str, str],
    methods: Sequence[str],
    tags: Sequence[str] = (),
    sections: Mapping[str, Mapping[str, str]] | None = None,
    plugins: Sequence[str] = (),
    otherwise: str = TO_FINE_TUNE,
) -> str:
    """The page.

    Args:
        name: of the folder.
        about: a sentence.
        rows: of the first table.
        methods: what the model can be asked.
        otherwise: what it is there for, a sentence, where that is nothing.
        tags: for the search of hubs, beside those of every model.
        sections: further tables by their headings.
        plugins: packages that loading it needs named.
    """
    use = otherwise
    if methods:
        arguments = f'"{name}"' + (f", plugins={list(plugins)}" if plugins else "")
        use = _USE.format(
            arguments=arguments, methods=", ".join(f"`{method}`" for method in methods)
        )
    further = "".join(
        f"\n## {heading}\n\n| | |\n|---|---|\n{_lines(table)}\n"
        for heading, table in (sections or {}).items()
    )
    lines = "\n".join(f"- {tag}" for tag in ("mhmoe-mm", *tags))
    return _CARD.format(
        name=name, about=about, tags=lines, rows=_lines(rows), sections=further, use=use
    )


def _lines(rows: Mapping[str, str]) -> str:
    return "\n".join(f"| {about} | {what} |" for about, what in rows.items())
