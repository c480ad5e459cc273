"""Compares one run on 1 device, on 8 devices and on 2 processes of 4 devices, and tests lost processes.

    make hosts

runs the tests of this file on CPU devices that JAX simulates. Each run is a separate process, which
trains a small network on the digits.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from faults import ROOT, SECOND_DIED, free_port, load_latest

from mtdml_jax.__main__ import STOPPED

SETTINGS = {
    'data.batch_size': 80,
    'eval.gallery_size': 50,
    # The loss is smooth in all distances. With batch-hard mining, rounding chooses between rows that are
    # equally near, and after some such steps the metrics differ by more than rounding.
    'loss.mining': 'all',
    'loss.softness': 0.1,
    'loss.softmax_weight': 1.0,
    'model.backbone': 'resnet10',
    'model.embedding_size': 32,
    # Adam's first steps are equally large for a gradient that consists of rounding errors.
    'optim.name': 'sgd',
    'optim.learning_rate': 1e-4,
    'train.num_steps': 30,
    'train.log_every': 1,
    'train.checkpoint_every': 10,
}

SHARD_MAP = {'train.mapping': 'shard_map'}

SWITCHED = {'train/grad_norm': 1e-3, 'train/slice_active_share': 1e-4}


class Runs:
    """Starts runs in one folder, with one prepared data set."""

    def __init__(self, folder):
        """Starts no run yet."""
        self.folder = folder

    def start(
        self,
        name,
        devices,
        processes=1,
        port=0,
        numbers=None,
        by_slurm=False,
        evaluates=False,
        **settings,
    ):
        """Starts and returns the processes of a run, or those with these numbers.

        Each has the given number of devices. The processes find each other by arguments, or by the
        variables that Slurm would set.
        """
        settings = SETTINGS | {'data.prepared_dir': self.folder / 'prepared'} | settings
        command = [sys.executable, '-m', 'mtdml_jax', 'train', '--config=configs/digits.py']
        command += [f'--workdir={self.folder / name}', *['--no-evaluate'] * (not evaluates)]
        command += [f'--config.{key}={value}' for key, value in settings.items()]
        environment = os.environ | {'JAX_NUM_CPU_DEVICES': str(devices), 'JAX_PLATFORMS': 'cpu'}
        environment['XLA_FLAGS'] = (
            '--xla_backend_optimization_level=0'  # Most of their time goes to compilation.
        )
        port = port or free_port()
        started = []
        for number in numbers or range(processes):
            joins = [f'--distributed=127.0.0.1:{port},{processes},{number}'] * (processes > 1)
            if by_slurm:
                joins = ['--distributed']
                environment |= slurm_variables(processes, number)
            with self.log(name, number).open('a') as log:
                started.append(
                    subprocess.Popen(
                        command + joins, cwd=ROOT, env=environment, stdout=log, stderr=log
                    )
                )
        return started

    def run(self, *arguments, **options):
        """Waits for the processes of a run; returns their exit codes."""
        return [process.wait(timeout=300) for process in self.start(*arguments, **options)]

    def log(self, name, number=0):
        """Returns the log of a process of a run."""
        return self.folder / f'{name}.{number}.log'

    def metrics(self, name):
        """Returns the lines of a run's metrics.jsonl."""
        lines = (self.folder / name / 'metrics.jsonl').read_text().splitlines()
        return [json.loads(line) for line in lines]

    def wait_for_step(self, name, step):
        """Waits until metrics.jsonl has a line for the step."""
        path = self.folder / name / 'metrics.jsonl'
        for _ in range(3000):
            if path.exists() and f'"step": {step},' in path.read_text():
                return
            time.sleep(0.1)
        raise TimeoutError(self.log(name).read_text())


def slurm_variables(processes, number):
    """Returns the variables that Slurm would set for a process of a job on this machine."""
    values = {'JOB_ID': os.getpid(), 'NTASKS': processes, 'PROCID': number, 'LOCALID': number}
    values |= {'STEP_NODELIST': 'localhost', 'STEP_NUM_NODES': 1}
    return {f'SLURM_{name}': str(value) for name, value in values.items()}


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Runs, with a finished run on one device."""
    found = Runs(tmp_path_factory.mktemp('runs'))
    assert found.run('one', 1, evaluates=True) == [0], found.log('one').read_text()
    return found


@pytest.fixture(scope='module')
def two(runs):
    """Runs, with a finished run of two processes of four devices."""
    codes = runs.run('two', 4, processes=2, evaluates=True)
    assert codes == [0, 0], runs.log('two').read_text()
    return runs


def assert_same_metrics(found, expected, switched=SWITCHED):
    """Asserts equal steps, and numbers that differ by at most 1e-5.

    The norm of the gradient and the shares of active triplets may differ by more (`switched`), because a
    rounding error can activate a triplet or deactivate it.
    """
    assert [set(line) for line in found] == [set(line) for line in expected]
    for line, other in zip(found, expected, strict=True):
        for name, value in line.items():
            tolerance = switched.get(name, 1e-5)
            message = f'{name}, step {line["step"]}'
            np.testing.assert_allclose(value, other[name], tolerance, tolerance, err_msg=message)


def test_eight_devices_have_the_metrics_of_one_with_either_mapping(runs):
    """All eight devices belong to one process."""
    assert runs.run('eight', 8) == [0]
    assert_same_metrics(runs.metrics('eight'), runs.metrics('one'))
    assert runs.run('eight_mapped', 8, **SHARD_MAP) == [0]
    assert_same_metrics(runs.metrics('eight_mapped'), runs.metrics('eight'), switched={})


def test_two_processes_of_four_devices_have_the_metrics_and_the_evaluation_of_one_device(two):
    """The processes evaluate each example once, and only the first process prints the results."""
    assert_same_metrics(two.metrics('two'), two.metrics('one'))
    one, both = (
        json.loads((two.folder / name / 'evaluation.json').read_text()) for name in ('one', 'two')
    )
    assert both['num_examples'] == one['num_examples']
    for name, score in one['retrieval'].items():
        np.testing.assert_allclose(both['retrieval'][name], score, atol=1e-4)
    assert 'faces of the split' in two.log('two', 0).read_text()
    assert 'faces of the split' not in two.log('two', 1).read_text()


def test_two_processes_resume_with_shard_map_and_have_the_metrics_and_state_of_pmap(two):
    """Pmap takes the first steps, and shard_map the others."""
    processes = two.start('mapped', 4, processes=2)
    two.wait_for_step('mapped', 3)
    processes[0].terminate()
    assert [process.wait(timeout=300) for process in processes] == [STOPPED, STOPPED]
    assert load_latest(two.folder / 'mapped')[0] < 20
    assert two.run('mapped', 4, processes=2, **SHARD_MAP) == [0, 0], two.log('mapped').read_text()
    assert_same_metrics(two.metrics('mapped'), two.metrics('two'), switched={})
    (step, found), (last, expected) = (load_latest(two.folder / x) for x in ('mapped', 'two'))
    assert step == last
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_processes_that_find_each_other_by_slurm_have_the_same_metrics(two):
    """The test sets the variables of Slurm and does not run Slurm."""
    assert two.run('slurm', 4, processes=2, by_slurm=True) == [0, 0], two.log('slurm').read_text()
    assert two.metrics('slurm') == two.metrics('two')


def test_sigterm_to_one_of_two_saves_the_same_step_of_both_and_a_restart_ends_with_the_same_bits(
    two,
):
    """The restarted run has the same number of devices."""
    processes = two.start('stopped', 4, processes=2)
    two.wait_for_step('stopped', 3)
    processes[1].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=300) for process in processes] == [STOPPED, STOPPED]
    step, _ = load_latest(two.folder / 'stopped')
    assert 3 < step < 30
    assert two.run('stopped', 4, processes=2) == [0, 0]
    assert two.metrics('stopped') == two.metrics('two')
    for found, expected in zip(
        load_latest(two.folder / 'stopped'), load_latest(two.folder / 'two'), strict=True
    ):
        np.testing.assert_equal(found, expected)


@pytest.mark.slow
def test_run_moves_from_eight_devices_to_two_and_one_and_back_to_another_folder(runs):
    """After 30 steps its metrics equal those of the uninterrupted run."""
    for number, (devices, step) in enumerate([(8, 5), (2, 10), (1, 15), (8, None)]):
        name = f'moved_{number}'
        if number:
            (runs.folder / f'moved_{number - 1}').rename(runs.folder / name)
        (process,) = runs.start(name, devices)
        if step:
            runs.wait_for_step(name, step)
            process.terminate()
        assert process.wait(timeout=300) == (STOPPED if step else 0)
    assert_same_metrics(runs.metrics(name), runs.metrics('one'))


@pytest.mark.slow
def test_process_ends_within_a_minute_of_the_other_ones_death_and_names_it(two):
    """A process that is killed cannot tell the other one."""
    first, second = two.start('dead', 1, processes=2, **{'train.num_steps': 2000})
    two.wait_for_step('dead', 3)
    second.kill()
    second.wait()
    start = time.monotonic()
    assert first.wait(timeout=60) != 0
    print(f'ended after {time.monotonic() - start:.0f} s')
    text = two.log('dead').read_text()
    assert re.search(r'mtdml_jax: process 0 of 2 could not continue', text)
    assert SECOND_DIED.search(text)


def test_processes_with_different_settings_refuse_to_work_together(runs):
    """Both print what differs."""
    options = {'processes': 2, 'port': free_port()}
    processes = [
        *runs.start('different', 1, numbers=[0], seed=0, **options),
        *runs.start('different', 1, numbers=[1], seed=1, **options),
    ]
    assert [process.wait(timeout=120) for process in processes] == [2, 2]
    for number in range(2):
        line = runs.log('different', number).read_text().splitlines()[-1]
        assert 'config.seed differs between processes: 1 from 0' in line
        assert line.endswith(f'on process {number} it is {number}')
