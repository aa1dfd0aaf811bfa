import os
import signal
from contextlib import nullcontext

import pytest

from bench.run.interrupt import Interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_interrupts_at_once_unless_it_is_held(number):
    done = []

    def work(hold):
        with Interrupts() as interrupts, interrupts.held() if hold else nullcontext():
            os.kill(os.getpid(), number)
            done.append("finished")

    with pytest.raises(KeyboardInterrupt):
        work(hold=False)
    assert done == []
    with pytest.raises(KeyboardInterrupt) as caught:
        work(hold=True)
    assert done == ["finished"]
    assert caught.value.args == (number,)


def test_what_was_ignored_stays_ignored_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    saved = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGTERM) != before
        assert signal.getsignal(signal.SIGTERM) == before
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, saved)


def test_an_error_in_a_held_block_is_not_hidden_by_the_signal():
    def work():
        with Interrupts() as interrupts, interrupts.held():
            os.kill(os.getpid(), signal.SIGTERM)
            raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        work()
