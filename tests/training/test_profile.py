import jax
import jax.numpy as jnp
import pytest

from mtdml_jax.training.profile import Profile


@pytest.fixture
def calls(monkeypatch):
    """The starts and ends of traces, and the steps between them."""
    found = []
    monkeypatch.setattr(jax.profiler, 'start_trace', lambda folder: found.append(f'start {folder}'))
    monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: found.append('stop'))
    return found


def run(profile, steps, calls):
    with profile:
        for step in steps:
            profile.before(step)
            calls.append(step)
            profile.after(step, jnp.ones(()))


@pytest.mark.parametrize(
    ('steps', 'ran', 'expected'),
    [
        ((2, 3), [1, 2, 3, 4], [1, 'start w', 2, 3, 'stop', 4]),
        (
            (2, 9),
            [1, 2, 3],
            [1, 'start w', 2, 3, 'stop'],
        ),  # The run ends before the last step of the trace.
        ((2, 3), [3, 4], [3, 4]),  # The run resumes after the first step of the trace.
        (None, [1, 2], [1, 2]),
    ],
)
def test_trace_has_the_requested_steps(calls, steps, ran, expected):
    run(Profile('w', steps), ran, calls)
    assert calls == expected


def test_trace_is_where_xprof_expects_it(tmp_path):
    run(Profile(tmp_path, (1, 1)), [1], [])
    (trace,) = (tmp_path / 'plugins' / 'profile').glob('*/*.xplane.pb')
    assert trace.stat().st_size > 0
