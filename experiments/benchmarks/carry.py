"""What a GPU machine without network needs for on_gpu.py, in parts that can be carried.

    python experiments/benchmarks/carry.py --data FOLDER
    python experiments/benchmarks/carry.py --unpack FOLDER

The first, where there is a network, writes build/carry/: the packages that such a machine lacks, for its
Python, and FER2013 of FOLDER (that of config.data.dir) prepared as records; all in one archive cut into
parts, with their SHA-256. The second, on the GPU machine, checks and joins the parts in FOLDER, and
unpacks them to FOLDER/site, FOLDER/data and FOLDER/prepared. They are used by PYTHONPATH=FOLDER/site and
on_gpu.py's --data and --prepared. The first takes the environment of the package, the second any Python
from 3.12 on. on_gpu.md has the whole sequence.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).absolute().parents[2]
CARRY = ROOT / 'build' / 'carry'
SUMS, WHOLE = 'SHA256SUMS', 'all.tar.xz'
# 64 MiB may travel at once, and the repository does too.
PART_BYTES = 50_000_000
PYTHON = '3.12'
PLATFORMS = [f'manylinux_2_{minor}_x86_64' for minor in (28, 27, 17)] + [
    'manylinux2014_x86_64',
    'any',
]
# Besides jax, flax, optax, orbax, chex, scikit-learn, pytest, and what they need. TensorFlow finds no
# keras, and does without.
PACKAGES = (
    'array_record',
    'astunparse',
    'dm-tree',
    'docstring_parser',
    'gast',
    'google-pasta',
    'googleapis-common-protos',
    'immutabledict',
    'importlib_resources',
    'ml_collections',
    'promise',
    'protobuf',
    'pytorch-metric-learning',
    'simple-parsing',
    'tensorboardX',
    'tensorflow-cpu',
    'tensorflow-datasets',
    'tensorflow-metadata',
    'termcolor',
    'toml',
)
# Of TensorFlow, what only compilers read.
UNUSED = ('tensorflow/include', 'tensorflow/xla_aot_runtime_src', 'bin')


def install(site: Path) -> None:
    """Puts the packages into a folder, for the Python of the GPU machine, without what is not used."""
    command = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-compile']
    command += ['--only-binary=:all:', '--no-binary=promise', f'--python-version={PYTHON}']
    command += ['--implementation=cp', *(f'--platform={name}' for name in PLATFORMS)]
    subprocess.run([*command, f'--target={site}', *PACKAGES], check=True)
    for name in UNUSED:
        shutil.rmtree(site / name, ignore_errors=True)
    # Names of functions that nobody outside calls: a quarter of the largest file.
    for library in (site / 'tensorflow').glob('libtensorflow_*.so*'):
        subprocess.run(['strip', '--strip-unneeded', library], check=True)


def prepare_faces(source: Path, data: Path, prepared: Path) -> None:
    """FER2013 as records in `prepared`, and in `data` a file that stands for its source.

    What is prepared goes by name, size and time of the source, and needs it no more: zeros will do.
    """
    data.mkdir()
    (path,) = source.glob('fer2013.csv*')
    copy = data / path.name
    shutil.copyfile(path, copy)
    whole_second = int(path.stat().st_mtime)  # All that an archive keeps.
    os.utime(copy, (whole_second, whole_second))
    command = [sys.executable, '-m', 'mtdml_jax', 'prepare', '--config=configs/fer2013.py']
    command += [f'--config.data.dir={data}', f'--config.data.prepared_dir={prepared}']
    subprocess.run(command, cwd=ROOT, check=True)
    with copy.open('wb') as file:
        file.truncate(path.stat().st_size)
    os.utime(copy, (whole_second, whole_second))


def pack(work: Path, folder: Path) -> list[Path]:
    """Writes an archive of all in `work`, cut into parts, and their checksums; returns the parts."""
    whole = folder / WHOLE
    with tarfile.open(whole, 'w:xz') as archive:
        for path in sorted(work.iterdir()):
            archive.add(path, path.name)
    paths = []
    with whole.open('rb') as file:
        while content := file.read(PART_BYTES):
            paths.append(folder / f'part-{len(paths)}')
            paths[-1].write_bytes(content)
    whole.unlink()
    lines = [f'{digest(path)}  {path.name}\n' for path in paths]
    (folder / SUMS).write_text(''.join(lines), encoding='utf-8')
    return paths


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def check(folder: Path) -> list[Path]:
    """The parts in a folder, in their order; ends the program if one is missing or not as it was."""
    paths = []
    for line in (folder / SUMS).read_text(encoding='utf-8').splitlines():
        right, name = line.split()
        paths.append(folder / name)
        if not paths[-1].exists():
            sys.exit(f'{paths[-1]} is missing')
        if digest(paths[-1]) != right:
            sys.exit(f'{paths[-1]} is not as it was packed')
    return paths


def unpack(folder: Path) -> None:
    """Checks the parts in a folder, and unpacks there what they are when joined."""
    whole = folder / WHOLE
    with whole.open('wb') as file:
        for path in check(folder):
            file.write(path.read_bytes())
    with tarfile.open(whole) as archive:
        archive.extractall(folder, filter='fully_trusted')
    whole.unlink()


def main() -> None:
    """Packs or unpacks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument('--data', type=Path, help='folder of fer2013.csv or fer2013.csv.gz')
    task.add_argument('--unpack', type=Path, metavar='FOLDER', help='folder of the parts')
    arguments = parser.parse_args()
    if arguments.unpack:
        unpack(arguments.unpack)
        return
    shutil.rmtree(CARRY, ignore_errors=True)
    CARRY.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=CARRY.parent) as name:
        work = Path(name)
        install(work / 'site')
        prepare_faces(arguments.data.absolute(), work / 'data', work / 'prepared')
        for path in pack(work, CARRY):
            print(path.relative_to(ROOT), path.stat().st_size)


if __name__ == '__main__':
    main()
