"""Images of shards: what a text is looked for among, and examples to begin with."""

import random
from typing import Any

from torch import Tensor

from datamodules.errors import SampleError
from datamodules.vqa import questions_of
from mhmoe_mm.inference import Model
from mhmoe_mm.tasks.base import Task
from mhmoe_mm.tasks.nlvr2 import NLVR2
from mhmoe_mm.tasks.vqa import VQA
from tools.build_shards.errors import InputError
from tools.demo.readings import png, thumbnail
from tools.gallery_options import samples_of
from tools.retrieval_gallery import all_finite, embed_images

LONGEST = 1024
"""Pixels of the longer side of an example."""


class Collection:
    """The samples of some shards.

    Args:
        shards: a folder of shards, or a pattern as in a configuration.
        task: whose questions the samples are examples of.
    """

    def __init__(self, shards: str, task: Task):
        self.samples, self.task = samples_of(shards), task
        if not len(self.samples):
            raise InputError(f"{shards} has no samples.")
        self._sides = ("left", "right") if isinstance(task, NLVR2) else ("",)
        try:
            self.samples[0].image(self._sides[0])
        except SampleError as error:
            raise InputError(str(error)) from error

    def image(self, number: int) -> Tensor:
        """An image, uint8 (3 height width)."""
        return self.samples[number].image()

    def embedded(self, model: Model) -> Tensor:
        """The vectors of all images, float32 (images dim)."""
        try:
            return all_finite(embed_images(model, self.samples), model.source)
        except SampleError as error:
            raise InputError(str(error)) from error

    def example(self) -> dict[str, Any]:
        """A sample drawn at random: its images as PNG in base64, and a text about them."""
        sample = self.samples[random.randrange(len(self.samples))]
        images = [png(thumbnail(sample.image(side), LONGEST)) for side in self._sides]
        return {"images": images, "text": self._text(sample)}

    def _text(self, sample: Any) -> str:
        """What one would ask about a sample; empty where it says nothing."""
        try:
            if isinstance(self.task, VQA):
                return random.choice(questions_of(sample, sample.about()))["question"]
            if isinstance(self.task, NLVR2):
                return random.choice(sample.about()["statements"])["sentence"]
            return random.choice(sample.decode("txt").splitlines()).strip()
        except (SampleError, LookupError, TypeError):
            return ""
