"""``LevelWeights``: the weights of a loss's levels, fixed or measured from gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..options import is_amount

BALANCE_BATCHES = 10  # that loss_weight='auto' is the median of


class LevelWeights(nn.Module):
    """A module with a weight per level, the schedule's factor, and the common weight 'auto'.

    Args:
        num_levels (int): Number of FPN levels.
        loss_weight (float | Sequence[float] | str): See ``FeatureLoss``.
        auto_share (float): See ``FeatureLoss``.

    Raises:
        ConfigError: An argument is out of range.
    """

    def __init__(
        self, num_levels: int, loss_weight: float | Sequence[float] | str, auto_share: float
    ) -> None:
        super().__init__()
        self.num_levels = num_levels
        share = f'auto_share must be above 0, got {auto_share!r}.'
        self._require(is_amount(auto_share) and auto_share > 0, share)
        self.loss_weight = loss_weight
        self.auto = isinstance(loss_weight, str) and loss_weight == 'auto'
        self.level_weights = [1.0] * num_levels if self.auto else self._weights(loss_weight)
        self.auto_share = auto_share
        # The schedule's factor on all weights.
        self.factor = 1.0
        self.register_buffer('auto_weight', torch.tensor(math.nan if self.auto else 1.0))
        balances = torch.full((BALANCE_BATCHES,), math.nan) if self.auto else None
        self.register_buffer('balances', balances)
        self._num_balances: int | None = 0 if self.auto else BALANCE_BATCHES

    @property
    def active(self) -> bool:
        """bool: Whether any level has a weight above 0 now."""
        return self.factor > 0 and any(weight > 0 for weight in self.level_weights)

    @property
    def num_balances(self) -> int:
        """int: How many batches the weight 'auto' is known from; all without 'auto'."""
        if self._num_balances is None:  # reading the buffer waits for the device
            self._num_balances = int((~self.balances.isnan()).sum())
        return self._num_balances

    @property
    def needs_auto_weight(self) -> bool:
        """bool: Whether ``loss_weight='auto'`` is not known from any batch yet."""
        return self.num_balances == 0

    @property
    def measures_balance(self) -> bool:
        """bool: Whether the weight 'auto' takes part of the next batch with objects."""
        return self.num_balances < BALANCE_BATCHES

    def note_balance(self, balance: Tensor) -> None:
        """Note the task's gradient over the distillation's in a batch, 0-dim, unless it is NaN."""
        if bool(balance.isfinite()):
            self.balances[self.num_balances] = balance
            self._num_balances += 1
            self._set_auto_weight()

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        weight, balances = state_dict.get(f'{prefix}auto_weight'), f'{prefix}balances'
        if weight is not None and self.auto:
            self._num_balances = None
            # Earlier versions saved the weight of one batch alone, and it is kept. A training whose
            # weight was a number has saved 1, and no batch is measured yet.
            of_one_batch = math.nan if weight == 1 else float(weight) / self.auto_share
            state_dict.setdefault(balances, torch.full((BALANCE_BATCHES,), of_one_batch))
        elif weight is not None:  # the config's number counts, also where 'auto' was measured
            state_dict.pop(balances, None)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if weight is not None:  # `auto_share` may have changed, too
            self._set_auto_weight()

    def _set_auto_weight(self) -> None:
        known = self.auto_share * self.balances.nanmedian() if self.auto else torch.tensor(1.0)
        self.auto_weight.copy_(known)

    def weighted(self, distances: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Multiply :meth:`distances` by each level's weight; while 'auto' is not set, it is 1."""
        common = self.auto_weight.nan_to_num(1.0) * self.factor if self.auto else self.factor
        return {
            name: weight * common * distance
            for weight, (name, distance) in zip(self.level_weights, distances.items())
        }

    def _require(self, condition: bool, otherwise: str) -> None:
        if not condition:
            raise ConfigError(f'{type(self).__name__}: {otherwise}')

    def _weights(self, loss_weight: float | Sequence[float]) -> list[float]:
        listed = isinstance(loss_weight, Sequence) and not isinstance(loss_weight, str)
        weights = list(loss_weight) if listed else [loss_weight] * self.num_levels
        self._require(
            len(weights) == self.num_levels and all(map(is_amount, weights)),
            f'loss_weight must be a number of 0 or more, a list of {self.num_levels} (one per '
            f"level), or 'auto'; got {loss_weight!r}.",
        )
        return [float(weight) for weight in weights]

    def extra_repr(self) -> str:
        return f'loss_weight={self.loss_weight}'
