"""Tests the package as users install it: with the extra [predict] and without a clone.

    make installed

installs wheel and sdist into an environment each, and runs this script there. The script calls
`mtdml predict` from an empty folder on one face of 48 px, first with an empty cache of compiled programs
and then with a full one. It prints the seconds from the start of the process to its end, and the peak
memory.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).absolute().parents[2]
NOT_LOADED = ('tensorflow', 'orbax', 'optax', 'sklearn', 'matplotlib')
USE = f"""
import sys, mtdml_jax
found = mtdml_jax.load('fer2013').predict('face.png')
assert found.probabilities.shape == (1, 7)
print([name for name in {NOT_LOADED} if name in sys.modules])
"""


def main():
    """Times two starts, and checks what `import mtdml_jax` loads and what the package contains."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ['XDG_CACHE_HOME'] = folder
        Image.linear_gradient('L').resize((48, 48)).save('face.png')
        for start in ('first', 'second'):
            run_predict(start)
        use = subprocess.run(
            [sys.executable, '-c', USE], capture_output=True, text=True, check=True
        )
        assert use.stdout.strip() == '[]', f'loaded but not needed: {use.stdout}'
        assert find_spec('mtdml_jax.configs.quickstart'), 'no configs in the package'
        package = Path(find_spec('mtdml_jax').origin).parent
        assert package.parent != ROOT, f'this is the clone: {package}'
        assert (package / 'py.typed').exists(), 'no py.typed in the package'
        shipped, models = (
            {file.name: file.stat().st_size for file in folder.glob(pattern)}
            for folder, pattern in ((package / 'shipped', '*'), (ROOT / 'models', '*.safetensors'))
        )
        assert shipped == models, f'of models/ the package has {shipped}'


def run_predict(start):
    """Runs the command once and checks what it prints."""
    command = [Path(sys.executable).with_name('mtdml'), 'predict', '--model=fer2013', 'face.png']
    began = time.perf_counter()
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - began
    assert found.stdout.splitlines()[1].startswith('face.png,'), found.stdout
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f'{start} start: {seconds:.1f} s, peak memory {peak:.0f} MB so far')


if __name__ == '__main__':
    main()
