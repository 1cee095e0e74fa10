import io

import pytest
from rich.console import Console

from rdimkd_det.progress import counting_bar, format_time, with_progress


@pytest.mark.parametrize('terminal', [True, False])
def test_watched__a_bar_with_the_time_left_on_a_terminal_only(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    shown = []
    for item in with_progress(range(3), 'counting', console=console):
        shown.append(item)
    assert shown == [0, 1, 2]
    output = console.file.getvalue()
    assert ('counting' in output and '-:--:--' in output) == terminal
    assert terminal or output == ''


@pytest.mark.parametrize(
    'terminal, shown, seen', [(True, True, True), (True, False, False), (False, True, False)]
)
def test_counting_bar__on_a_terminal_where_it_is_wanted(terminal, shown, seen):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with counting_bar('making', 5, console, shown) as advance:
        advance()
        advance(3)
    output = console.file.getvalue()
    assert ('making' in output and '4/5' in output) == seen
    assert seen or output == ''


@pytest.mark.parametrize(
    'seconds, text',
    [(-1, '0 s'), (89, '89 s'), (91, '2 min'), (3500, '58 min'), (3900, '1 h 05 min')],
)
def test_format_time__literal(seconds, text):
    assert format_time(seconds) == text
