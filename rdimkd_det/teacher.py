"""The frozen teacher: built on first use, loaded strictly, never part of the student."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from torch import Tensor, nn

from .acceleration import Acceleration, accelerate, lower_precision, training_dtype
from .bridge import InputBridge
from .errors import ConfigError
from .features import Level, ProbeError, probe_levels, record_outputs
from .files.checkpoints import load_checkpoint_safely
from .files.configs import read_detector_config
from .files.weights import load_strictly


class FeatureExtractor(nn.Module):
    """Backbone and neck of a detector: what its ``extract_feat`` runs.

    Args:
        model (ConfigDict): The detector's config.
        with_neck (bool): Whether the neck is wanted.
    """

    called = 'the teacher'  # in messages

    def __init__(self, model: ConfigDict, with_neck: bool) -> None:
        super().__init__()
        self.backbone = MODELS.build(model['backbone'])
        if with_neck and model.get('neck') is not None:
            self.neck = MODELS.build(model['neck'])

    def forward(self, images: Tensor) -> object:
        feats = self.backbone(images)
        return self.neck(feats) if hasattr(self, 'neck') else feats


class Teacher:
    """A detector whose feature maps are matched.

    It is a plain object, so that no ``state_dict``, parameter list, optimizer, DDP or EMA copy of
    the student that owns it ever sees its weights; a deepcopy shares it, a pickle holds its config
    and the name of its checkpoint.

    Args:
        config (str | dict): Path of the detector's config file, ``'mmdet::...'`` for one that
            ships with MMDetection, or a config with a ``model``.
        checkpoint (str): Path or URL of its weights.
        taps (Sequence[str]): Paths of the tapped modules.
        acceleration (Acceleration, optional): How it is made fast. Defaults to what is safe
            everywhere.

    Raises:
        UnreadableConfigError: The config cannot be read.
        ConfigError: It has no backbone, the checkpoint is not a name, or a tap is out of reach of
            a compiled network.
    """

    # A `CachedTeacher` gives coordinates in the subspace in place of maps.
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
        # Its weights are in a file already; the next call builds them from there.
        return {**vars(self), '_network': None, '_dtype': None, '_stream': None}

    @property
    def built(self) -> bool:
        """bool: Whether the weights are in memory."""
        return self._network is not None

    @property
    def num_bytes(self) -> int:
        """int: Memory that the weights take now, in bytes."""
        return (
            sum(value.nbytes for value in self._network.state_dict().values()) if self.built else 0
        )

    def build_preprocessor(self) -> nn.Module:
        """Build the teacher's own data preprocessor, for the ``InputBridge``."""
        # Without one, or without its type, a detector takes mmengine's base class.
        preprocessor = self.model.get('data_preprocessor') or {}
        return MODELS.build({'type': 'BaseDataPreprocessor', **preprocessor})

    def build_bridge(self, preprocessor: nn.Module) -> InputBridge:
        """Build what turns a batch that the student's preprocessor made into this teacher's."""
        return InputBridge(preprocessor, self.build_preprocessor())

    def check(self, cfg: Config) -> None:
        """Check what :meth:`prepare` will need: a checkpoint that loads strictly."""
        self.load_plain()

    def prepare(self, cfg: Config) -> None:
        """Be ready for a training: build the network, and know the training's precision.

        The projections are fitted, and a cache is made, outside of the training's autocast.

        Args:
            cfg (Config): Config of the training.

        Raises:
            ConfigError: As :meth:`build`.
        """
        self.build()
        self._training_dtype = training_dtype(cfg)

    def provide_bases(self, tap: str, indices: Sequence[int], loss: nn.Module) -> None:
        """Nothing to provide: a loss fits its own bases."""

    def probe(self) -> dict[str, list[Level]]:
        """Strides and channels at the taps, without weights or memory for them."""
        try:
            with torch.device('meta'):
                return probe_levels(self._build_network(), self.taps)
        except (NotImplementedError, RuntimeError, ProbeError):
            # Swin reads numbers off tensors while it is built, deformable convolution has no
            # kernel for shapes alone: those are built for real, and dropped.
            return probe_levels(self._build_network(), self.taps)

    def build(self) -> None:
        """Build the network and load its weights, unless that has been done.

        Raises:
            ConfigError: The checkpoint is missing, unreadable, or not of this architecture.
        """
        if self._network is None:
            # The checkpoint first: a wrong one costs no time.
            load = partial(self._load_network, self._read_weights())
            self._network = accelerate(load, self.acceleration, self.taps)

    def load_plain(self) -> FeatureExtractor:
        """The network as its checkpoint has it, without what makes it fast; it is not kept.

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
            # No time for an initialisation that the weights replace.
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
        # Initialisation draws random numbers, which must not shift those of the student's run.
        with torch.random.fork_rng(devices=[]):
            return FeatureExtractor(self.model, with_neck)

    def release(self) -> None:
        """Free the weights; the next call builds them again."""
        self._network = self._dtype = None

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> dict[str, list[Tensor]]:
        """Feature maps of a batch; with a stream of its own they are there after :meth:`wait`.

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
        """Half precision of the weights; once they have one, they keep it."""
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
        """Let the current stream wait for maps, where the teacher has a stream of its own.

        Args:
            outputs (Mapping[str, Sequence[Tensor]]): Maps from a call, by any name.
        """
        if self._stream is not None:
            current = torch.cuda.current_stream(self._stream.device)
            current.wait_stream(self._stream)
            for maps in chain.from_iterable(outputs.values()):
                maps.record_stream(current)


def _lacks_values(network: nn.Module) -> bool:
    """Whether a module computed a tensor that is in no checkpoint, so that it is on meta still."""
    attributes = chain.from_iterable(vars(module).values() for module in network.modules())
    flat = chain.from_iterable(a if isinstance(a, (list, tuple)) else [a] for a in attributes)
    tensors = chain(network.parameters(), network.buffers(), flat)
    return any(isinstance(tensor, Tensor) and tensor.is_meta for tensor in tensors)
