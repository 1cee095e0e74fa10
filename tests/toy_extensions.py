"""What a user may add without a change of the package: a projection and a loss, in one file."""

import torch
from mmengine.registry import MODELS
from torch import Tensor

from rdimkd_det import FeatureLoss
from rdimkd_det.projections import Projection


@MODELS.register_module()
class StrongestChannels(Projection):
    """The channels in which the teacher's maps vary most; learned, and without an option ``dim``.

    Args:
        share (float): Share of the channels to keep. Defaults to 0.5.
    """

    def __init__(self, num_channels: int, level: int = 0, share: float = 0.5) -> None:
        super().__init__(num_channels)
        self.num_kept = max(1, round(share * num_channels))

    def learn_basis(self, covariance: Tensor) -> Tensor:
        """See :meth:`Projection.learn_basis`."""
        strongest = covariance.diagonal().topk(self.num_kept).indices
        return torch.eye(self.num_channels)[:, strongest]


@MODELS.register_module()
class CosineLoss(FeatureLoss):
    """One minus the cosine of the angle between student and teacher, at each position."""

    name = 'cosine'

    def distance(self, level: int, student: Tensor, teacher: Tensor) -> Tensor:
        """See :meth:`FeatureLoss.distance`."""
        return 1 - torch.cosine_similarity(student, teacher).mean()


@MODELS.register_module()
class ScaledCosineLoss(CosineLoss):
    """``CosineLoss`` of maps without adapters, pooled over the channels, with a learned scale."""

    name = 'scaled_cosine'
    uses_adapters = False

    def __init__(self, initial: float = 1.0, **options) -> None:
        super().__init__(**options)
        self.scale = torch.nn.Parameter(torch.full((self.num_levels,), initial))

    def distance(self, level: int, student: Tensor, teacher: Tensor) -> Tensor:
        """See :meth:`FeatureLoss.distance`."""
        student, teacher = (it.square().mean(1).flatten(1) for it in (student, teacher))
        return self.scale[level] * super().distance(level, student, teacher)
