"""``Teacher``: runs a frozen network: built on first use, never part of the student."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..bridge import InputBridge, check_channels
from ..errors import ConfigError
from ..features import Level, device_of, record_outputs
from ..options import explain
from .acceleration import Acceleration, accelerate, lower_precision, training_dtype
from .fan_out import resize_levels
from .placement import Placement
from .source import Source, identity

# In the message of a RuntimeError from an operator that got a tensor of an unexpected size.
OF_SIZE = re.compile(r'\b(sizes?|shapes?)\b', re.IGNORECASE)


class Teacher:
    """A frozen network that provides the feature maps for the student to match.

    The teacher is a plain object, not a module. So its weights stay out of the student's
    ``state_dict``, parameters, optimizer, DDP and EMA copies. A deepcopy shares the teacher; a
    pickle holds its source, which loads the weights again. Without a ``student_preprocessor``, it
    is called with batches as its own preprocessor makes them.
    """

    # A `CachedTeacher` returns coordinates in the subspace instead of maps.
    projected = False

    def __init__(
        self,
        source: Source,
        taps: Sequence[str],
        acceleration: Acceleration | None = None,
        student_preprocessor: nn.Module | None = None,
        placement: Placement | None = None,
    ) -> None:
        self.source = source
        self.taps = list(taps)
        self.placement = placement or Placement(source, self.taps)
        self.acceleration = acceleration or Acceleration()
        inner = [tap for tap in self.taps if tap not in source.whole_taps]
        if self.acceleration.compile and inner:
            raise ConfigError(
                f"teacher: '{inner[0]}' is tapped, and compile=True hides what is inside of "
                f'{" and ".join(source.whole_taps)}; set compile=False.'
            )
        self.bridge: InputBridge | None = None
        self._network: nn.Module | None = None
        self._dtype: torch.dtype | None = None
        self._training_dtype: torch.dtype | None = None
        self._stream: torch.cuda.Stream | None = None
        if student_preprocessor is not None:
            check_channels(self.source.build_preprocessor(), self.image_channels, 'teacher')
            self.bridge = InputBridge(
                student_preprocessor, self.build_preprocessor(), self.placement.scale
            )

    def __deepcopy__(self, memo: dict) -> Teacher:
        return self

    def __getstate__(self) -> dict:
        # The next call loads the weights from the source again.
        return {**vars(self), '_network': None, '_dtype': None, '_stream': None}

    @property
    def built(self) -> bool:
        """bool: Whether the weights are in memory."""
        return self._network is not None

    @property
    def num_bytes(self) -> int:
        """int: Memory of the weights in bytes; 0 while they are not loaded."""
        return sum(v.nbytes for v in self._network.state_dict().values()) if self.built else 0

    @property
    def checkpoint(self) -> str | None:
        """str | None: Path or URL of the weights, if they are in a file."""
        return self.source.checkpoint

    def describe(self) -> str:
        """Return what the teacher is, and what becomes of its input."""
        return f'{self.checkpoint or self.source.name}, its input by {self.bridge}'

    def identity(self) -> dict:
        """Return what identifies the teacher in a resumed training, in JSON types."""
        return identity(self.source.facts())

    def build_preprocessor(self) -> nn.Module:
        """Build the teacher's own data preprocessor.

        It pads to sizes that the network accepts, even if the teacher left that to its pipeline.
        """
        divisor = self.placement.divisor
        preprocessor = self.source.build_preprocessor()
        preprocessor.pad_size_divisor = divisor
        return preprocessor

    def check(self, cfg: Config) -> None:
        """Check that :meth:`prepare` will succeed: the checkpoint must load strictly."""
        self.load_plain()

    def prepare(self, cfg: Config) -> None:
        """Build the network, and note the precision of the training's autocast.

        Fitting projections and making a cache run the teacher outside that autocast.
        """
        self.build()
        self._training_dtype = training_dtype(cfg)

    def provide_bases(self, tap: str, indices: Sequence[int], loss: nn.Module) -> None:
        """Do nothing: with a live teacher, a loss fits its own bases."""

    def probe(self) -> dict[str, list[Level]]:
        """Measure strides and channels at the taps, if possible without memory for weights.

        Strides are in pixels of the student's images, and a map that is resized is a level.
        """
        return self.placement.levels

    @property
    def image_channels(self) -> int:
        """int: Channels of the images that the network takes."""
        return self.placement.image_channels

    def build(self) -> None:
        """Build the network and load its weights, unless they are loaded."""
        if self._network is None:
            if self.source.model is None:
                self.probe()  # how tokens lie on an image is measured on a square one
            self._network = accelerate(self._loader(), self.acceleration, self.taps)

    def load_plain(self) -> nn.Module:
        """Build and return the network without acceleration; the teacher does not keep it."""
        return self._loader()()

    def _loader(self) -> Callable[[], nn.Module]:
        # Read the checkpoint first, to fail early on an unreadable one.
        weights = self.source.read_weights(self.acceleration.share_weights)
        return partial(self.source.load, weights, self.taps)

    def release(self) -> None:
        """Free the weights; the next call loads them again."""
        self._network = self._dtype = None

    @torch.no_grad()
    def __call__(
        self, inputs: Tensor, data_samples: Sequence | None = None
    ) -> dict[str, list[Tensor]]:
        """Compute the maps at the taps, without gradient, in the teacher's precision.

        With ``own_stream`` they need :meth:`wait` first.
        """
        self.build()
        if self.bridge is not None:
            inputs = self.bridge(inputs, data_samples)
        device = inputs.device
        if device_of(self._network) != device:
            self._network.to(device)
        dtype = self._precision(device)
        autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
        taps = record_outputs(self._network, self.taps)
        with self._beside_current_stream(inputs), autocast, taps as outputs:
            version = None if inputs.is_inference() else inputs._version
            try:
                self._network(inputs)
            except (AssertionError, RuntimeError, ValueError) as error:
                # Memory runs out with a RuntimeError, too.
                of_size = not isinstance(error, RuntimeError) or OF_SIZE.search(explain(error))
                if self.source.model is not None or not of_size:
                    raise
                size = 'x'.join(map(str, inputs.shape[2:]))
                raise ConfigError(
                    f'teacher: {self.source.name} does not take images of {size} pixels: '
                    f'{explain(error)}; if its size is fixed, make it take any (timm: '
                    f'dynamic_img_size=True or strict_img_size=False), or resize all images to it.'
                ) from error
            if self.source.model is None:
                self.placement.check_positions(outputs, inputs.shape[2:])
            for tap, plan in self.placement.plans.items():
                outputs[tap] = resize_levels(outputs[tap], plan)
        if version is not None and inputs._version != version:
            raise ConfigError(
                f'teacher: {self.source.name} changes its input in place, which may be the '
                f"student's batch; let it work on a copy."
            )
        return outputs

    def _precision(self, device: torch.device) -> torch.dtype | None:
        """Return the half precision or None; once set, the weights keep it."""
        if self._dtype is None:
            self._dtype = self.acceleration.dtype(device, self._training_dtype)
            if self._dtype is not None:
                lower_precision(self._network, self._dtype)
        return self._dtype

    @contextmanager
    def _beside_current_stream(self, inputs: Tensor) -> Iterator[None]:
        if not (self.acceleration.own_stream and inputs.is_cuda):
            yield
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(inputs.device)
        self._stream.wait_stream(torch.cuda.current_stream(inputs.device))
        inputs.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            yield

    def wait(self, outputs: Mapping[str, Sequence[Tensor]]) -> None:
        """Make the current stream wait for maps, by any key, of a teacher in a separate stream."""
        if self._stream is not None:
            current = torch.cuda.current_stream(self._stream.device)
            current.wait_stream(self._stream)
            for maps in chain.from_iterable(outputs.values()):
                maps.record_stream(current)
