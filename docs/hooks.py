"""mkdocs: copies each file outside docs/ that a page links to into the site, and links to the copy.

The pages are also read in the repository, where `../configs/fer2013.py` is an ordinary link.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).absolute().parents[1]
FOLDER = 'repository'
LINK = re.compile(r'(\]\()([^)#:\s]+)(?=[)#])')


def on_files(files, config):
    """Adds the files outside docs/ that pages link to."""
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
    """Replaces links to files outside docs/ by links to their copies."""

    def replace(match):
        outside = _outside(page.file, match[2])
        up = '../' * page.file.src_uri.count('/')
        return f'{match[1]}{up}{FOLDER}/{outside}' if outside else match[0]

    return LINK.sub(replace, markdown)


def _outside(page, link):
    """Returns the path of a linked file relative to the repository; None for a file inside docs/."""
    target = (Path(page.abs_src_path).parent / link).resolve()
    inside = target.is_relative_to(ROOT / 'docs') or not target.is_relative_to(ROOT)
    return None if inside or not target.is_file() else target.relative_to(ROOT).as_posix()
