import os
import signal

from mtdml_jax.training.stopping import catch_signals


def test_second_ctrl_c_has_the_default_handler_which_ends_the_process(capsys):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with catch_signals() as stopping:
        assert not stopping.now(None, 1)
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping.now(None, 1)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
        assert 'Ctrl-C again' in capsys.readouterr().err
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_sigterm_twice_is_one_request():
    with catch_signals() as stopping:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.now(None, 1)
        assert signal.getsignal(signal.SIGTERM) == stopping.ask
