import subprocess
import sys

HEAVY = ('tensorflow', 'tensorflow_datasets', 'flax', 'optax', 'orbax', 'sklearn', 'matplotlib')


def test_import_of_the_package_loads_nothing_heavier_than_jax():
    code = f'import sys, mtdml_jax; print([name for name in {HEAVY} if name in sys.modules])'
    found = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == '[]'
