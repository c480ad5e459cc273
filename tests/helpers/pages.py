"""README and the pages of docs/, for the tests of what they show."""

import re
from pathlib import Path

ROOT = Path(__file__).absolute().parents[2]


def text_of(page):
    """Returns the text of a page, given its path in the repository."""
    return (ROOT / page).read_text(encoding='utf-8')


def blocks(page, language):
    """Returns the contents of a page's code blocks in a language."""
    return re.findall(rf'^```{language}\n(.*?)^```', text_of(page), re.DOTALL | re.MULTILINE)
