"""Finds the file of a model by its path, by the folder of its run, or by its name in the package."""

from pathlib import Path

from mtdml_jax.host.errors import UserError, listed
from mtdml_jax.host.paths import user_path

# The evaluation of a run writes the model under this name into the run's folder.
MODEL_NAME = 'model.safetensors'
# In a clone, a symbolic link to models/.
SHIPPED = Path(__file__).absolute().parents[1] / 'shipped'


def shipped_models() -> dict[str, Path]:
    """Returns {name: model file} of the models in the package."""
    return {file.stem: file for file in sorted(SHIPPED.glob('*.safetensors'))}


def find_model(path: str | Path) -> Path:
    """Returns the file of a model.

    Args:
      path: a model file, or the folder of a run that was evaluated. A string that is neither may be the
        name of a model in the package; a `Path` is never a name.

    Raises:
      UserError: there is no such file, folder or model; or the folder has no model file, or it is the
        folder of a cross-validation, which has several.
    """
    name, path = path, user_path(path)
    if path.is_dir():
        return _find_in_run(path)
    if path.exists():
        return path
    shipped = shipped_models()
    if not isinstance(name, str) or name not in shipped:
        raise UserError(
            f'{path}: there is no such file or folder; models of the package: '
            f'{", ".join(shipped) or "none"}'
        )
    return shipped[name]


def _find_in_run(folder):
    folds = sorted(x.parent.name for x in folder.glob(f'fold_*/{MODEL_NAME}'))
    if folds:
        raise UserError(
            f'{folder}: this folder of a cross-validation has one model per fold; name one of '
            f'{listed(folds)} in it'
        )
    if not (folder / MODEL_NAME).exists():
        raise UserError(
            f'{folder}: there is no {MODEL_NAME} in this folder; the evaluation of a run writes it: '
            f'python -m mtdml_jax evaluate --workdir={folder}'
        )
    return folder / MODEL_NAME
