"""Contents of expert reports for tests of the page: of any size, and with parts left out."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image as Pillow

from tools.expert_report.contents import (
    VERSION,
    Activation,
    Choice,
    Counts,
    Curve,
    Dimension,
    DiversityGroup,
    Expert,
    Fact,
    Gate,
    Image,
    ImageStep,
    Layer,
    Pair,
    Patches,
    PatchStep,
    Route,
    RunContents,
    Sentence,
    Series,
    Specialisation,
    Summary,
    Together,
    Token,
    Use,
    Word,
    WordCount,
    Words,
)

TAUS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
TEXT = "the red circle is left of a blue square"


class Maker:
    """Makes a run; its sizes are the arguments of `run_contents`."""

    def __init__(self, layers: int, experts: int, heads: int, choices: int, seed: int):
        self.layers, self.experts, self.heads = layers, experts, heads
        self.choices = min(choices, experts)
        self.random = np.random.default_rng(seed)
        self.weights = self.random.dirichlet(np.full(experts, 4.0), size=layers)
        self.names = tuple(f"blocks.{2 * i}.ffn.shared" for i in range(layers))

    def route(self, layer: int) -> tuple[tuple[int, ...], ...]:
        """(heads choices) experts of a token, different ones for each sub-token."""
        keys = np.log(self.weights[layer] + 1e-9) + self.random.gumbel(
            size=(self.heads, self.experts)
        )
        return nested(np.argsort(-keys, axis=1)[:, : self.choices])

    def use(self, count: np.ndarray, tokens: int) -> Use:
        share = count / max(count.sum(), 1)
        entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
        return Use(
            activation=float((count > 0.5 * count.mean()).mean()),
            sweep=tuple(float((count > tau * tokens).mean()) for tau in TAUS),
            entropy_share=float(entropy / np.log(self.experts)) if self.experts > 1 else 1.0,
            dead=float((count == 0).sum()),
            max_over_mean=float(count.max() / max(count.mean(), 1e-9)),
        )

    def counts(self, layer: int, dimension: str, kind: str, tokens: int) -> Counts:
        skew = self.random.dirichlet(np.full(self.experts, 8.0))
        spread = 0.5 * self.weights[layer] + 0.5 * skew
        count = self.random.multinomial(tokens * self.choices, spread / spread.sum())
        if kind == "text" and self.experts > 2:
            count[1] = 0
        even = self.random.multinomial(
            tokens * self.choices, np.full(self.experts, 1 / self.experts)
        )
        return Counts(
            dimension, kind, tokens, nested(count), 0.013, 0.5 * self.choices / self.experts,
            self.use(count, tokens), self.use(even, tokens),
        )  # fmt: skip

    def layer(self, index: int, kinds: dict[str, tuple[str, ...]]) -> Layer:
        tokens = 1013
        counts = [self.counts(index, "all", "all", tokens)]
        for dimension, names in kinds.items():
            counts += [self.counts(index, dimension, name, tokens // len(names)) for name in names]
        kind = "MHMoE" if self.heads > 1 else "SparseMoE"
        return Layer(
            self.names[index], 2 * index, "shared", kind, self.experts, self.heads,
            self.choices, tuple(counts),
        )  # fmt: skip

    def token(self, text: str, word: int) -> Token:
        experts = tuple(self.route(layer) for layer in range(self.layers))
        return Token(text, word, "word" if word >= 0 else "special", experts, diversities(experts))

    def sentence(self, key: str, text: str, language: str) -> Sentence:
        tokens = [self.token("[CLS]", -1)]
        for number, word in enumerate(text.split()):
            cut = 5 if len(word) > 7 else len(word)
            tokens += [self.token(f" {word[:cut]}", number)]
            tokens += [self.token(word[cut:], number)] if word[cut:] else []
        return Sentence(key, "pair", language, tuple(tokens))

    def image(self, key: str, text: str, grid: int, steps: int) -> Image:
        patches, side = grid * grid, 8 * grid
        y, x = np.mgrid[:side, :side] / side
        disc = (x - 0.5) ** 2 + (y - 0.45) ** 2 < 0.09
        sky = np.stack([120 + 90 * y, np.full_like(y, 170), np.full_like(y, 205)], axis=-1)
        pixels = np.where(disc[..., None], (214, 72, 60), sky)
        buffer = io.BytesIO()
        Pillow.fromarray(pixels.astype(np.uint8)).save(buffer, "png")
        experts = tuple(tuple(self.route(i) for _ in range(patches)) for i in range(self.layers))
        diversity = tuple(diversities(layer) for layer in experts)
        reached = np.mean(diversity, axis=0)
        shown = tuple(
            ImageStep(100 * (s + 1), nested(1 + (reached - 1) * (s + 1) / steps))
            for s in range(steps)
        )
        return Image(
            key, text, base64.b64encode(buffer.getvalue()).decode(), side, side, grid, grid,
            nested(self.random.random(patches)), experts, diversity, shown,
        )  # fmt: skip

    def word(self, text: str, language: str, diversity: float) -> Word:
        routes = tuple(
            tuple(
                Route(int(self.random.integers(self.experts)), float(self.random.uniform(0.2, 1)))
                for _ in range(self.heads)
            )
            for _ in range(self.layers)
        )
        return Word(text, language, 17, 1.2, diversity, False, routes)

    def words(self, extra: str) -> Words:
        top = min(self.heads * self.choices, self.experts)
        edges = np.linspace(1, max(top, 2), 12)
        density = self.random.dirichlet(np.full(11, 3.0), size=2)
        chosen = [*sorted(set(TEXT.split())), *([extra] if extra else [])]
        words = tuple(
            self.word(text, "en", float(self.random.uniform(1, max(top, 1.01)))) for text in chosen
        )
        ranked = tuple(sorted(words, key=lambda word: -word.diversity))
        groups = (
            DiversityGroup("listed", 113, 3.2, 0.05, nested(density[0])),
            DiversityGroup("rest", 1709, 2.9, 0.01, nested(density[1])),
        )
        return Words(
            nested(edges), groups, min(2.7, top), 5, ranked, ranked[::-1], words, words[:2],
            ("grouse",),
        )  # fmt: skip

    def together(self, layer: str, other: str, heads: bool) -> Together:
        count = self.random.poisson(20, size=(self.experts, self.experts))
        count = count + count.T if heads else count
        same = float(np.trace(count) / count.sum())
        pairs = (Pair(0, self.experts - 1, int(count[0, -1]), 2.5),)
        agree = self.random.random((self.heads, self.heads)) if heads else np.zeros((0, 0))
        return Together(
            layer, other, int(count.sum()), nested(count), 0.04, same if heads else None,
            1 / self.experts if heads else None, pairs, nested(agree),
        )  # fmt: skip

    def series(self, layer: str, kind: str, steps: int) -> Series:
        at = tuple(100 * (s + 1) for s in range(steps))

        def line(low: float, high: float) -> tuple[float, ...]:
            return nested(self.random.uniform(low, high, steps))

        load = nested(self.random.dirichlet(np.full(self.experts, 9.0), size=steps))
        return Series(
            "val", layer, kind, at, load, line(0.7, 1), line(0.97, 1), line(0.8, 1), line(0, 2),
            line(1, 3), line(0, 0.1), line(1, 1.3), line(0.3, 0.9),
        )  # fmt: skip


def nested(values: Any) -> Any:
    """An array as tuples of Python's own numbers."""
    values = values.tolist() if isinstance(values, np.ndarray) else values
    return tuple(nested(value) for value in values) if isinstance(values, list) else values


def diversities(tokens: Any) -> tuple[int, ...]:
    return tuple(len({expert for head in token for expert in head}) for token in tokens)


def run_contents(
    name: str = "mh_moe",
    *,
    layers: int = 3,
    experts: int = 7,
    heads: int = 5,
    choices: int = 2,
    images: int = 3,
    grid: int = 5,
    texts: bool = True,
    steps: int = 3,
    seed: int = 0,
    extra: str = "",
) -> RunContents:
    """A run; `extra` is put wherever a run carries words of its own."""
    make = Maker(layers, experts, heads, choices, seed)
    kinds: dict[str, tuple[str, ...]] = {}
    if images and texts:
        kinds["modality"] = ("image", "text")
    if texts:
        kinds["language"] = ("en", "de", extra or "fr")
    tokens = 1013
    facts = (Fact("seed", str(seed)), Fact("note", extra or "none"))
    sparse = tuple(make.layer(i, kinds) for i in range(layers))
    even = [layer.counts[0] for layer in sparse]

    def mean(values: list[Any]) -> Any:
        return nested(np.mean(values, axis=0)) if values else 0.0

    activation = tuple(
        Activation(
            unit, "half of an even share", mean([c.tau for c in even]) * times,
            mean([c.use.activation for c in even]), mean([c.random.activation for c in even]),
            mean([c.use.sweep for c in even]), mean([c.random.sweep for c in even]),
            0.9071 if heads > 1 else 0.0833,
        )
        for unit, times in (("sub-token", 1), ("token", heads))[: 2 if heads > 1 else 1]
        if layers
    )  # fmt: skip
    step = tuple(50 * (i + 1) for i in range(8))
    curves = tuple(
        Curve(curve, step, nested(make.random.uniform(0, 2, 8)))
        for curve in ("train/loss", "val/loss", "val/text_accuracy")
    )
    pairs = list(zip(make.names, make.names[1:], strict=False))
    return RunContents(
        version=VERSION,
        summary=Summary(
            name, f"runs/{name}/last.ckpt", "MaskedPretraining",
            "MHMoE" if heads > 1 else "SparseMoE", "TopKRouter", 300, 3_169_152, layers, heads,
            experts, choices, "validation split, 11 batches", 701, tokens, facts,
        ),
        complaints=(f"blocks.0: 1 of {experts} experts got no token. {extra}",) if layers else (),
        taus=TAUS,
        dimensions=tuple(
            Dimension(dimension, "token" if dimension == "modality" else "sample", names)
            for dimension, names in kinds.items()
        ),
        layers=sparse,
        activation=activation,
        curves=curves if steps else (),
        history=tuple(
            make.series(layer, kind, steps)
            for layer in make.names
            for kind in ("image", "text", "all")
        ) if steps else (),
        words=make.words(extra) if texts else None,
        sentences=(
            make.sentence("val/7", TEXT, "en"),
            make.sentence("val/11", f"ein Vierundzwanzigstel {extra}".strip(), "de"),
        ) if texts else (),
        images=tuple(
            make.image(f"val/{i}", f"{extra} picture {i}".strip(), grid, max(steps, 1))
            for i in range(images)
        ),
        patches=Patches(
            2.7, 0.1,
            tuple(
                PatchStep(100 * (s + 1), 2 + s / 10, 2.2 + s / 9, 2, 0.1, nested(np.arange(10) / 9))
                for s in range(max(steps, 1))
            ),
        ) if images else None,
        heads_together=tuple(make.together(n, n, True) for n in make.names) if heads > 1 else (),
        layers_together=tuple(make.together(a, b, False) for a, b in pairs),
        specialisation=tuple(
            Specialisation(layer, dimension, 0.11, 0.02, 0.09, 0.13)
            for dimension in kinds
            for layer in make.names
        ),
        gates=tuple(
            Gate(
                layer, 1.2, 0.61, 1.03, 4.2, 0.013,
                tuple(Choice(c + 1, 0.99, 0, 0.31, 0.08) for c in range(make.choices)),
            )
            for layer in make.names
        ),
        experts=tuple(
            Expert(layer, e, (WordCount("circle", 31, 3.4), WordCount(extra or "left", 7, 2.1)))
            for layer in make.names
            for e in range(experts)
        ) if texts else (),
    )  # fmt: skip
