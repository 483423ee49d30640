"""The contents of an expert report: everything a page shows of one run, as plain values.

Numbers, strings, None and tuples of them alone, so that `contents_json` writes all of it as JSON
and reads it back. Whoever draws a page needs this file only. Conventions:

- A layer is a sparse layer, named by its path in the network (`blocks.1.ffn.shared`); wherever
  something has an axis "layers", it follows `RunContents.layers`.
- Expert `-1` is none: the assignment was refused (a full expert) or not wanted, or the token does
  not pass this layer (then the whole entry is an empty tuple).
- An assignment is one (sub-token, expert) pair that was carried out. In a plain sparse layer a
  token is its only sub-token: one head.
- Shares are in [0, 1], entropies and informations in nats. A number that cannot be told is None.
"""

from typing import NamedTuple

VERSION = 1
"""Raised when a field changes its meaning; new fields do not count."""


class Fact(NamedTuple):
    """A line of a table of facts."""

    name: str
    value: str


class Summary(NamedTuple):
    """What was looked at."""

    name: str
    """Of the run; two runs of one report have different names."""
    source: str
    """The checkpoint, or the file of recorded routing."""
    task: str
    """Class of the task, such as `VQA`; empty where only routing is known."""
    layer_kind: str
    """`MHMoE` or `SparseMoE`, or both with a comma where a network has both."""
    router: str
    """Class of the routers."""
    step: int | None
    """Optimizer steps of the checkpoint."""
    parameters: int | None
    num_layers: int
    """Sparse layers."""
    num_heads: int
    """Sub-tokens per token; 1 in a plain sparse layer. The most of any layer."""
    num_experts: int
    """Per layer; the most of any layer."""
    experts_per_subtoken: float
    """How many experts read a sub-token, on average; the mean over layers."""
    data: str
    """In words: which split, how many batches."""
    samples: int
    tokens: int
    """Tokens that any sparse layer routed; padding is none."""
    facts: tuple[Fact, ...]
    """Further lines for people: seed, precision, last figures, when it was made."""


class Curve(NamedTuple):
    """A figure over training."""

    name: str
    """As the logger has it, such as `val/answer_accuracy`."""
    steps: tuple[int, ...]
    values: tuple[float | None, ...]
    """One for each of `steps`."""


class Use(NamedTuple):
    """How evenly experts are used; docs/experts.md defines the figures."""

    activation: float | None
    """Share of experts with a frequency above tau."""
    sweep: tuple[float | None, ...]
    """The same at each of `RunContents.taus`."""
    entropy_share: float | None
    """Entropy of the load, 1 where even."""
    dead: float | None
    """Experts that got nothing (a mean, for random routing)."""
    max_over_mean: float | None
    """The fullest expert's load in even shares."""


class Counts(NamedTuple):
    """One kind of token in one layer."""

    dimension: str
    """What is told apart: `all`, or one of `RunContents.dimensions`."""
    kind: str
    """One of the dimension's kinds, such as `image`; `all` in the dimension `all`."""
    tokens: int
    """Sub-tokens of this kind that the layer routed."""
    count: tuple[int, ...]
    """(experts) assignments."""
    dropped_share: float | None
    """Of the assignments that were wanted, those refused because an expert was full; None where
    only the plan is known and it does not tell refused from not wanted."""
    tau: float
    use: Use
    random: Use
    """What as many assignments to uniformly random experts give."""


class Layer(NamedTuple):
    """A sparse layer."""

    name: str
    block: int
    """Number of the block that it is in, from 0. Layers of one block are branches of each other."""
    branch: str
    """`image`, `text`, `fused` or `shared` in an encoder, empty in a decoder."""
    kind: str
    """`MHMoE` or `SparseMoE`."""
    num_experts: int
    num_heads: int
    choices: int
    """Most experts of a sub-token, the last axis of everything with choices."""
    counts: tuple[Counts, ...]
    """Of all tokens first, then of every dimension and kind that the layer met."""


class Dimension(NamedTuple):
    """A way to tell tokens apart."""

    name: str
    """`modality`, `language`, `task`, `answer type` or `token class`."""
    unit: str
    """`sample` where all tokens of a sample are of one kind, else `token`."""
    kinds: tuple[str, ...]


class Activation(NamedTuple):
    """The activation of the whole network: the mean over layers of the share of active experts."""

    unit: str
    """Frequencies are per `sub-token`, or per `token`: `num_heads` times larger."""
    rule: str
    """How tau was chosen, in words."""
    tau: float | None
    """The mean over layers, where each has its own."""
    value: float
    random: float
    """What random routing of as many assignments gives."""
    sweep: tuple[float, ...]
    """At each of `RunContents.taus`."""
    random_sweep: tuple[float, ...]
    paper: float | None
    """What https://arxiv.org/abs/2404.15045 reports for this kind of layer: 0.9071 of a multi-head
    one, 0.0833 of a plain one, at a tau it does not give."""


class Series(NamedTuple):
    """One kind of token in one layer over training, from the run's `experts.jsonl`."""

    stage: str
    """`train`, `val` or `test`."""
    layer: str
    kind: str
    """A modality or a language as the layer tells them apart, and `all` if there are several."""
    steps: tuple[int, ...]
    load_share: tuple[tuple[float | None, ...], ...]
    """(steps experts) share of the assignments; empty where it would be too much for a page."""
    activation: tuple[float | None, ...]
    random_activation: tuple[float | None, ...]
    entropy_share: tuple[float | None, ...]
    dead: tuple[float | None, ...]
    max_over_mean: tuple[float | None, ...]
    dropped_share: tuple[float | None, ...]
    balance: tuple[float | None, ...]
    """The layer's balance loss, of all kinds."""
    router_entropy_share: tuple[float | None, ...]
    """Likewise."""


class Route(NamedTuple):
    """Where a head sends something most often."""

    expert: int
    share: float
    """Of that head's first choices."""


class Word(NamedTuple):
    """A word, over all its occurrences."""

    word: str
    language: str
    """Empty where it is not known."""
    occurrences: int
    pieces: float
    """Tokens that it is cut in, on average."""
    diversity: float
    """Different experts that read the sub-tokens of a token: mean over layers, tokens and
    occurrences."""
    listed: bool
    """Whether it is in the list of words that was given."""
    routes: tuple[tuple[Route, ...], ...]
    """(layers heads); empty where the word was not followed that closely."""


class DiversityGroup(NamedTuple):
    """How many experts read the tokens of some words."""

    name: str
    """`all words`, and with a list of words `listed` and `rest`."""
    occurrences: int
    mean: float
    standard_error: float | None
    """Of the mean, occurrences taken as independent."""
    density: tuple[float, ...]
    """Share of occurrences in each bin."""


class Words(NamedTuple):
    """The assign-diversity of words (https://arxiv.org/abs/2404.15045, figure 7)."""

    edges: tuple[float, ...]
    """Of the bins, one more than bins: numbers of experts, from 1."""
    groups: tuple[DiversityGroup, ...]
    random: float
    """Expected with random routing: `E (1 - (1 - 1/E) ** (heads * choices))`, mean over layers."""
    least_occurrences: int
    """Words that are rarer are in the groups, not in the lists."""
    most: tuple[Word, ...]
    """Those that spread most, in order."""
    least: tuple[Word, ...]
    frequent: tuple[Word, ...]
    listed: tuple[Word, ...]
    """All of the given list that occurred, however rare."""
    missing: tuple[str, ...]
    """Of the given list, what never occurred."""
    random_distinct: float | None = None
    """As `random`, where the choices of one sub-token are different experts, as those of most
    routers are: `E (1 - (1 - choices/E) ** heads)`."""


class Token(NamedTuple):
    """A token of an example sentence."""

    text: str
    """What it spells; a special token's name; a blank in front where a word begins."""
    word: int
    """Number of its word in the sentence, -1 for special tokens."""
    token_class: str
    """One of the kinds of the dimension `token class`."""
    experts: tuple[tuple[tuple[int, ...], ...], ...]
    """(layers heads choices); an empty tuple for a layer that the token does not pass."""
    diversity: tuple[int | None, ...]
    """(layers) different experts; None for a layer that it does not pass."""


class Sentence(NamedTuple):
    """An example sentence, token by token."""

    key: str
    """Where it came from."""
    task: str
    language: str
    tokens: tuple[Token, ...]


class ImageStep(NamedTuple):
    """How an image was read at one checkpoint."""

    step: int
    diversity: tuple[float | None, ...]
    """(patches) different experts, mean over the layers, row by row."""


class Image(NamedTuple):
    """An example image with its patches."""

    key: str
    text: str
    """What was asked or said about it; empty where it was read alone."""
    png: str
    """The image as the network sees it, a PNG in base64."""
    width: int
    height: int
    rows: int
    columns: int
    """Of the grid of patches."""
    energy: tuple[float, ...]
    """(patches) root mean square of the luminance's gradient, of a range of 1 per pixel."""
    experts: tuple[tuple[tuple[tuple[int, ...], ...], ...], ...]
    """(layers patches heads choices) at the newest checkpoint; an empty tuple for a layer that
    images do not pass."""
    diversity: tuple[tuple[int | None, ...], ...]
    """(layers patches) different experts at the newest checkpoint; likewise empty."""
    steps: tuple[ImageStep, ...]
    """From the oldest checkpoint to the newest."""


class PatchStep(NamedTuple):
    """All patches at one checkpoint."""

    step: int
    mean: float
    """Different experts per patch, mean over layers and patches."""
    edge: float | None
    """The same of patches with edges."""
    flat: float | None
    """And of flat ones."""
    correlation: float | None
    """Spearman's, between a patch's diversity and its energy."""
    by_energy: tuple[float, ...]
    """Mean diversity in each tenth of the patches, from the flattest."""


class Patches(NamedTuple):
    """The assign-diversity of image patches (https://arxiv.org/abs/2404.15045, figures 8, 10)."""

    random: float
    """Expected with random routing, as in `Words`."""
    edge_from: float
    """Energy from which a patch counts as `edge patch`."""
    steps: tuple[PatchStep, ...]
    random_distinct: float | None = None
    """As in `Words`."""


class Pair(NamedTuple):
    """Two experts that meet in the same token."""

    first: int
    second: int
    count: int
    lift: float
    """Times as often as if either were chosen independently of the other."""


class Together(NamedTuple):
    """Which experts meet in a token.

    Between heads (`layer == other`): pairs of first choices of two different heads of a token, each
    pair of heads in both orders, so the matrix is symmetric. Between layers: first choices of one
    head in a layer and in the next that the token passes.
    """

    layer: str
    other: str
    pairs: int
    """Sum of `count`."""
    count: tuple[tuple[int, ...], ...]
    """(experts experts of other); empty where it would be too much for a page."""
    information: float
    """Mutual information of the two choices."""
    same: float | None
    """Between heads: share of pairs that chose the same expert."""
    random_same: float | None
    """The same if they chose independently, with the same loads."""
    strongest: tuple[Pair, ...]
    """Those most above chance, of the pairs that are not rare."""
    same_by_heads: tuple[tuple[float, ...], ...]
    """(heads heads) share of tokens where both chose the same expert; between heads only."""


class Specialisation(NamedTuple):
    """How much a layer's experts tell of what they read."""

    layer: str
    dimension: str
    information: float
    """Mutual information of expert and kind over assignments."""
    baseline: float
    """The same for as many random groups of samples (or tokens, by the dimension's unit): what
    chance, and samples that are alike, give."""
    corrected: float
    """Their difference."""
    share: float | None
    """`corrected` of the kinds' entropy: 1 where the expert tells the kind."""


class Choice(NamedTuple):
    """All sub-tokens' first choices, or second ones, and so on."""

    choice: int
    """From 1; 0 where choices have no order (experts choose)."""
    carried_share: float
    """Of the sub-tokens, those that this choice was carried out for."""
    unused: int
    """Experts that nobody chose so."""
    top: float
    """Share on the fifth of the experts (one at least) that is used most."""
    bottom: float
    """Share on the fifth that is used least."""


class Gate(NamedTuple):
    """What a layer's router says, under the names of the released code's metrics."""

    layer: str
    entropy: float | None
    """Mean entropy of a sub-token's distribution over experts."""
    entropy_share: float | None
    """The same of `log E`."""
    balance: float | None
    """The balance loss: 1 when even."""
    z_loss: float | None
    dropped_share: float | None
    choices: tuple[Choice, ...]


class WordCount(NamedTuple):
    """A word that an expert reads."""

    word: str
    count: int
    lift: float
    """Times as often as the layer's experts on average."""


class Expert(NamedTuple):
    """What an expert reads."""

    layer: str
    expert: int
    words: tuple[WordCount, ...]
    """Those most typical of it; empty where it reads no words."""


class RunContents(NamedTuple):
    """Everything about one run."""

    version: int
    summary: Summary
    complaints: tuple[str, ...]
    """What is wrong and what to try, a sentence each; empty where nothing is."""
    taus: tuple[float, ...]
    """Thresholds of every sweep."""
    dimensions: tuple[Dimension, ...]
    layers: tuple[Layer, ...]
    """From the first to the last."""
    activation: tuple[Activation, ...]
    """Per sub-token, and with several heads per token."""
    curves: tuple[Curve, ...]
    history: tuple[Series, ...]
    words: Words | None
    """None where no text was read, or its tokenizer is not known."""
    sentences: tuple[Sentence, ...]
    images: tuple[Image, ...]
    patches: Patches | None
    """None where no image was read."""
    heads_together: tuple[Together, ...]
    """One per multi-head layer."""
    layers_together: tuple[Together, ...]
    """One per pair of layers that tokens pass one after the other."""
    specialisation: tuple[Specialisation, ...]
    """One per layer and dimension of which it met two kinds or more."""
    gates: tuple[Gate, ...]
    """One per layer."""
    experts: tuple[Expert, ...]
    """Those with words."""
