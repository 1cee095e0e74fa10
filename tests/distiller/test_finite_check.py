import pytest
import torch
from processes import run_distributed

from rdimkd_det.distiller.finite_check import FiniteCheck, stop_if_broken, take_broken

NAN = float('nan')


def losses(*values):
    return {f'loss_{index}': torch.tensor(value) for index, value in enumerate(values)}


def deferred(same_on_ranks=True):
    check = FiniteCheck(same_on_ranks)
    check.deferred = True
    return check


def test_note__raises_at_once_unless_deferred():
    check = FiniteCheck(same_on_ranks=True)
    check.note(losses(1.0, 2.0))
    with pytest.raises(FloatingPointError, match=r'^loss_1 is not finite: .* level. Lower'):
        check.note(losses(1.0, NAN, 3.0))
    check.note(losses(1.0, 2.0))  # it is told once


def test_take_broken__names_of_all_checks_once():
    first, second, silent = deferred(), deferred(), deferred()
    first.note(losses(1.0, float('inf')))
    second.note({'other': torch.tensor(NAN)})
    assert take_broken([first, silent, second]) == ['loss_1', 'other']
    assert take_broken([first, silent, second]) == []


def test_stop_if_broken__says_nothing_of_finite_losses():
    check = deferred()
    stop_if_broken([check])
    check.note(losses(1.0, -2.0))
    stop_if_broken([check])


def test_take_broken__of_all_forward_passes_since():
    check = deferred()
    check.note(losses(NAN, 1.0))
    check.note(losses(1.0, 1.0))
    assert take_broken([check]) == ['loss_0']


def test_note__ranks_with_losses_of_their_own_tell_each_other(tmp_path):
    def on_rank(rank):
        found = []
        for same_on_ranks in (False, True):
            check = deferred(same_on_ranks)
            check.note(losses(1.0, NAN if rank else 2.0))
            found.append(take_broken([check]))
        return found

    assert run_distributed(on_rank, tmp_path) == [[['loss_1'], []], [['loss_1'], ['loss_1']]]
