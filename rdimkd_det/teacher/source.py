"""``Source``: what a ``Teacher`` asks of the place that its network comes from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlparse

from mmengine.config import ConfigDict
from torch import Tensor, nn

from ..files.checkpoints import digest_of_file, load_checkpoint_safely


class Source:
    """Where a teacher's network, its weights and its kind of input come from.

    A class is added in ``teacher.build``; its arguments are options of ``model.teacher``.
    """

    name: str  # of config or module, for messages
    checkpoint: str | None  # path or URL of the weights; None if the network brings its own
    model: ConfigDict | None = None  # of the whole detector, with its head, if the network is one
    default_tap: str | None = None  # for losses without a teacher_module; None: the student's tap
    whole_taps: tuple[str, ...]  # the taps that compile=True leaves visible
    built_on_meta: bool  # whether `build` may run on the meta device
    input_scale: float | None = None  # see `ModuleSource`; None: chosen so that strides fit
    levels: Mapping[int, str] | None = None  # see `fan_out.plan_levels`; None: the maps as they are
    fan_out: bool = False  # whether a map is made for each stride of the student

    def build(self, taps: Sequence[str]) -> nn.Module:
        """Build the network that has these taps; draws no random numbers of the training."""

    def read_weights(self, mapped: bool) -> Mapping[str, Tensor] | None:
        """Read the checkpoint, memory-mapped if ``mapped``; None if there is none."""
        return load_checkpoint_safely(self.checkpoint, who='teacher', mapped=mapped)

    def load(self, weights: Mapping[str, Tensor] | None, taps: Sequence[str]) -> nn.Module:
        """Build the network with the weights from :meth:`read_weights`, frozen, in eval mode."""

    def build_preprocessor(self) -> nn.Module:
        """Build the data preprocessor that makes the network's input from 8-bit BGR images."""

    def facts(self) -> dict:
        """Return what determines the maps, in JSON types: config or module, 'checkpoint' (its file
        name), and 'weights' (the SHA-256 of the tensors in use).
        """

    @classmethod
    def given_facts(cls, **entry) -> dict:
        """Return the facts that an entry tells that goes with a cache, and may be incomplete."""


def checkpoint_facts(checkpoint: str, parts: Collection[str] = ()) -> dict:
    """Return a checkpoint's file name, and the SHA-256 of those of its tensors that are in use.

    ``parts`` are the first names of their keys; all if there are none. The SHA-256 is None if the
    file is not on this machine.
    """
    name = Path(urlparse(checkpoint).path).name
    return {'checkpoint': name, 'weights': digest_of_file(checkpoint, parts)}


def identity(facts: Mapping) -> dict:
    """Return those of a live or a cached teacher's facts that its maps of an image depend on."""
    return {what: it for what, it in facts.items() if what == 'weights' or 'the teacher' in what}
