"""mkdocs: links that leave docs/ for another file of the repository lead to a copy of it in the site.

The pages are read in the repository too, where `../configs/fer2013.py` is a link like any other.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).absolute().parents[1]
FOLDER = 'repository'
LINK = re.compile(r'(\]\()([^)#:\s]+)(?=[)#])')


def on_files(files, config):
    """Adds the files that pages link to."""
    for page in files.documentation_pages():
        for _, link in LINK.findall(page.content_string):
            outside = _outside(page, link)
            if outside and files.get_file_from_path(f'{FOLDER}/{outside}') is None:
                file = File.generated(
                    config, f'{FOLDER}/{outside}', abs_src_path=str(ROOT / outside)
                )
                files.append(file)
    return files


def on_page_markdown(markdown, page, config, files):
    """Links to the copies."""

    def replace(match):
        outside = _outside(page.file, match[2])
        up = '../' * page.file.src_uri.count('/')
        return f'{match[1]}{up}{FOLDER}/{outside}' if outside else match[0]

    return LINK.sub(replace, markdown)


def _outside(page, link):
    """The file that a page's link means, from the repository's root; None inside docs/."""
    target = (Path(page.abs_src_path).parent / link).resolve()
    inside = target.is_relative_to(ROOT / 'docs') or not target.is_relative_to(ROOT)
    return None if inside or not target.is_file() else target.relative_to(ROOT).as_posix()
