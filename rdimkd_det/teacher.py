"""The frozen teacher: built on first use, loaded strictly, never part of the student."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import chain
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from torch import Tensor, nn

from .acceleration import Acceleration, accelerate, lower_precision, training_dtype
from .bridge import InputBridge
from .errors import ConfigError
from .features import Level, ProbeError, probe_levels, record_outputs, size_divisor
from .files.checkpoints import load_checkpoint_safely
from .files.configs import read_detector_config
from .files.weights import load_strictly


class FeatureExtractor(nn.Module):
    """Backbone and neck of a detector, the part that its ``extract_feat`` runs.

    Args:
        model (ConfigDict): The detector's config.
        with_neck (bool): Whether to build the neck, if the config has one.
    """

    display_name = 'the teacher'  # name in error messages

    def __init__(self, model: ConfigDict, with_neck: bool) -> None:
        super().__init__()
        self.backbone = MODELS.build(model['backbone'])
        if with_neck and model.get('neck') is not None:
            self.neck = MODELS.build(model['neck'])

    def forward(self, images: Tensor) -> object:
        feats = self.backbone(images)
        return self.neck(feats) if hasattr(self, 'neck') else feats


class Teacher:
    """A frozen detector that provides the feature maps for the student to match.

    The teacher is a plain object, not a module. So its weights stay out of the student's
    ``state_dict``, parameters, optimizer, DDP and EMA copies. A deepcopy shares the teacher; a
    pickle holds its config and the name of its checkpoint, but no weights.

    Args:
        config (str | dict): Path of the detector's config file, ``'mmdet::...'`` for one that
            ships with MMDetection, or a config with a ``model``.
        checkpoint (str): Path or URL of the detector's weights.
        taps (Sequence[str]): Paths of the tapped modules.
        acceleration (Acceleration, optional): Options for speed and memory. Defaults to
            ``Acceleration()``.

    Raises:
        UnreadableConfigError: The config cannot be read.
        ConfigError: The config has no backbone, the checkpoint is not a path or URL, or a tap lies
            inside a compiled module.
    """

    # A `CachedTeacher` returns coordinates in the subspace instead of maps.
    projected = False

    def __init__(
        self,
        config: str | dict,
        checkpoint: str,
        taps: Sequence[str],
        acceleration: Acceleration | None = None,
    ) -> None:
        if not isinstance(checkpoint, (str, Path)):
            raise ConfigError(
                f"teacher: needs a checkpoint, the path or URL of the teacher's weights; got "
                f'{checkpoint!r}.'
            )
        self.model = read_detector_config(config)
        self.config = config if isinstance(config, str) else '(given as a dict)'
        self.checkpoint = str(checkpoint)
        self.taps = list(taps)
        self.acceleration = acceleration or Acceleration()
        inner = [tap for tap in self.taps if '.' in tap]
        if self.acceleration.compile and inner:
            raise ConfigError(
                f"teacher: '{inner[0]}' is tapped, and compile=True hides what is inside of "
                f'backbone and neck; set compile=False.'
            )
        self._network: FeatureExtractor | None = None
        self._dtype: torch.dtype | None = None
        self._training_dtype: torch.dtype | None = None
        self._stream: torch.cuda.Stream | None = None

    def __deepcopy__(self, memo: dict) -> Teacher:
        return self

    def __getstate__(self) -> dict:
        # The next call loads the weights from the checkpoint again.
        return {**vars(self), '_network': None, '_dtype': None, '_stream': None}

    @property
    def built(self) -> bool:
        """bool: Whether the weights are in memory."""
        return self._network is not None

    @property
    def num_bytes(self) -> int:
        """int: Memory of the weights in bytes; 0 while they are not loaded."""
        return (
            sum(value.nbytes for value in self._network.state_dict().values()) if self.built else 0
        )

    def build_preprocessor(self) -> nn.Module:
        """Build the teacher's own data preprocessor, for the ``InputBridge``.

        It pads to sizes that the network accepts, even if the teacher left that to its pipeline.
        """
        preprocessor = self._configured_preprocessor()
        preprocessor.pad_size_divisor = self._probed[1]
        return preprocessor

    def _configured_preprocessor(self) -> nn.Module:
        # Like a detector, fall back to mmengine's base class if the config or its type is missing.
        options = self.model.get('data_preprocessor') or {}
        return MODELS.build({'type': 'BaseDataPreprocessor', **options})

    def build_bridge(self, preprocessor: nn.Module) -> InputBridge:
        """Build the bridge that converts batches of the student's preprocessor for this teacher."""
        return InputBridge(preprocessor, self.build_preprocessor())

    def check(self, cfg: Config) -> None:
        """Check that :meth:`prepare` will succeed: the checkpoint must load strictly."""
        self.load_plain()

    def prepare(self, cfg: Config) -> None:
        """Build the network, and note the precision of the training's autocast.

        Fitting projections and making a cache run the teacher outside that autocast.

        Args:
            cfg (Config): Config of the training.

        Raises:
            ConfigError: As :meth:`build`.
        """
        self.build()
        self._training_dtype = training_dtype(cfg)

    def provide_bases(self, tap: str, indices: Sequence[int], loss: nn.Module) -> None:
        """Do nothing: with a live teacher, a loss fits its own bases."""

    def probe(self) -> dict[str, list[Level]]:
        """Measure strides and channels at the taps, if possible without memory for weights."""
        return self._probed[0]

    @cached_property
    def _probed(self) -> tuple[dict[str, list[Level]], int]:
        """tuple: The levels at the taps, and the divisor to which images must be padded."""
        divisor = getattr(self._configured_preprocessor(), 'pad_size_divisor', 1)
        try:
            with torch.device('meta'):
                return self._look_at(self._build_network(), divisor)
        except (NotImplementedError, RuntimeError, ProbeError):
            # Swin reads values of tensors while it is built, and deformable convolution has no
            # kernel for the meta device: build these on a real device and discard them.
            return self._look_at(self._build_network(), divisor)

    def _look_at(
        self, network: FeatureExtractor, divisor: int
    ) -> tuple[dict[str, list[Level]], int]:
        levels = probe_levels(network.eval(), self.taps)
        return levels, size_divisor(network, divisor, levels[self.taps[0]][0].image)

    def build(self) -> None:
        """Build the network and load its weights, unless they are loaded.

        Raises:
            ConfigError: The checkpoint is missing, unreadable, or not of this architecture.
        """
        if self._network is None:
            # Read the checkpoint first, to fail early on an unreadable one.
            load = partial(self._load_network, self._read_weights())
            self._network = accelerate(load, self.acceleration, self.taps)

    def load_plain(self) -> FeatureExtractor:
        """Build and return the network without acceleration; the teacher does not keep it.

        Raises:
            ConfigError: As :meth:`build`.
        """
        return self._load_network(self._read_weights())

    def _read_weights(self) -> Mapping[str, Tensor]:
        mapped = self.acceleration.share_weights
        return load_checkpoint_safely(self.checkpoint, who='teacher', mapped=mapped)

    def _load_network(self, weights: Mapping[str, Tensor]) -> FeatureExtractor:
        network = None
        try:
            # The meta device skips an initialisation that the weights replace.
            with torch.device('meta'):
                network = self._build_network()
        except (NotImplementedError, RuntimeError):
            pass
        else:
            load_strictly(network, weights, self.checkpoint, self.config, who='teacher')
        if network is None or _lacks_values(network):
            network = self._build_network()
            load_strictly(network, weights, self.checkpoint, self.config, who='teacher')
        return network.requires_grad_(False).eval()

    def _build_network(self) -> FeatureExtractor:
        with_neck = any(tap.split('.')[0] != 'backbone' for tap in self.taps)
        # Initialisation draws random numbers, and must not change those that the student draws.
        with torch.random.fork_rng(devices=[]):
            return FeatureExtractor(self.model, with_neck)

    def release(self) -> None:
        """Free the weights; the next call loads them again."""
        self._network = self._dtype = None

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> dict[str, list[Tensor]]:
        """Compute the feature maps of a batch; with ``own_stream`` they need :meth:`wait` first.

        Args:
            inputs (Tensor): Batch (N, 3, H, W) as the teacher's own preprocessor makes it.

        Returns:
            dict[str, list[Tensor]]: Tap to its maps (N, C, H, W), without gradient, in the
            teacher's precision.
        """
        self.build()
        device = inputs.device
        if next(self._network.parameters()).device != device:
            self._network.to(device)
        dtype = self._precision(device)
        autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
        taps = record_outputs(self._network, self.taps)
        with self._beside_current_stream(inputs), autocast, taps as outputs:
            self._network(inputs)
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
        """Make the current stream wait for maps, if the teacher runs in a separate stream.

        Args:
            outputs (Mapping[str, Sequence[Tensor]]): Maps from a call of the teacher, by any key.
        """
        if self._stream is not None:
            current = torch.cuda.current_stream(self._stream.device)
            current.wait_stream(self._stream)
            for maps in chain.from_iterable(outputs.values()):
                maps.record_stream(current)


def _lacks_values(network: nn.Module) -> bool:
    """Check whether a tensor that no checkpoint holds is still on the meta device."""
    attributes = chain.from_iterable(vars(module).values() for module in network.modules())
    flat = chain.from_iterable(a if isinstance(a, (list, tuple)) else [a] for a in attributes)
    tensors = chain(network.parameters(), network.buffers(), flat)
    return any(isinstance(tensor, Tensor) and tensor.is_meta for tensor in tensors)
