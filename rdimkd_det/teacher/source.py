"""``Source``: what a ``Teacher`` asks of the place that its network comes from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import urlparse

from mmengine.config import ConfigDict
from torch import Tensor, nn

from ..files.checkpoints import digest_of_file


class Source(Protocol):
    """Where a teacher's network, its weights and its kind of input come from.

    A class is added in ``teacher.build``; its arguments are entries of ``model.teacher``.

    Attributes:
        options (tuple[str, ...]): Names of these arguments.
        name (str): Name of the config or module, for messages.
        checkpoint (str | None): Path or URL of the weights; None if the network brings its own.
        model (ConfigDict | None): Config of a whole detector, with its head; None if the network
            is none.
        default_tap (str | None): Tap of the losses without a ``teacher_module``; None for the same
            path as in the student.
        whole_taps (tuple[str, ...]): The taps that ``compile=True`` leaves visible.
        built_on_meta (bool): Whether :meth:`build` may run on the meta device.
        input_scale (float | None): Side of its images over that of the student's; None if that is
            to be chosen so that strides fit.
        levels (Mapping[int, str] | None): Strides of the student, each with how a map is made for
            it, see :func:`rdimkd_det.teacher.fan_out.plan_levels`; None for the maps as they are.
        fan_out (bool): Whether a map is made for each stride of the student.
    """

    options: tuple[str, ...]
    name: str
    checkpoint: str | None
    model: ConfigDict | None
    default_tap: str | None
    whole_taps: tuple[str, ...]
    built_on_meta: bool
    input_scale: float | None
    levels: Mapping[int, str] | None
    fan_out: bool

    def build(self, taps: Sequence[str]) -> nn.Module:
        """Build the network that has these taps; draws no random numbers of the training."""

    def read_weights(self, mapped: bool) -> Mapping[str, Tensor] | None:
        """Read the checkpoint, memory-mapped if ``mapped``; None if there is none."""

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
