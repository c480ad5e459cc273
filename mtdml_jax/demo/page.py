"""The demo page: a picture in, faces, expressions, and what each slice says against its threshold.

Gradio makes the page and is imported where one is made. An upload is deleted as soon as it is read; what
a visitor sees and enrols stays in memory, apart for each, until the tab is closed.
"""

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mtdml_jax.demo.page_html import (
    show_header,
    show_message,
    show_nearest,
    show_picture,
    show_probabilities,
    show_verdicts,
)
from mtdml_jax.demo.page_session import (
    MAX_NAME,
    Detect,
    Session,
    enroll,
    nearest_faces,
    read_faces,
)
from mtdml_jax.host.errors import UserError
from mtdml_jax.inference.drawing import draw_boxes
from mtdml_jax.inference.model import Model
from mtdml_jax.inference.verdicts import slice_verdicts

if TYPE_CHECKING:
    from gradio import Blocks

MAX_UPLOAD = '10mb'
# Uploads that no handler has read, as of a tab that was closed, are deleted after as many seconds.
LEFT_SECONDS = 60
NO_FACE = 'No face was found in this picture.'
WHOLE_PICTURE = 'Faces are not searched for: the whole picture is taken as the face.'


def make_page(model: Model, detect: Detect | None = None) -> 'Blocks':
    """The page, to be served by `serve`, or by a server of one's own.

    Args:
      model: the model; what visitors enrol is not added to it.
      detect: finds faces in an upright picture of mode L or RGB: left, top, width and height of each, in
        pixels, as `faces.find_faces` does; None to take the whole picture as the face.

    Raises:
      UserError: Gradio is not installed.
    """
    gr = _import_gradio()
    with gr.Blocks(
        title='Facial expressions',
        analytics_enabled=False,
        delete_cache=(LEFT_SECONDS, LEFT_SECONDS),
    ) as page:
        view = partial(gr.HTML, apply_default_css=False, js_on_load=None)
        view(show_header(model.settings))
        session = gr.State()
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                upload = gr.Image(
                    label='Picture',
                    sources=['upload', 'webcam', 'clipboard'],
                    buttons=[],
                    height=190,
                    placeholder='Drop a picture here, or click to choose one',
                    webcam_options=gr.WebcamOptions(mirror=False),
                )
                message = view(js_on_load="element.setAttribute('aria-live', 'polite')")
                picture = view()
            with gr.Column(scale=5, min_width=320, visible=False) as beside:
                faces = gr.Radio(label='Face, the largest first', visible=False)
                probabilities, nearest = view(), view()
                with gr.Row(equal_height=True):
                    label = gr.Dropdown(
                        list(model.class_names),
                        label='Enrol this face as',
                        info='an expression, or a new one',
                        allow_custom_value=True,
                        scale=3,
                    )
                    name = gr.Textbox(
                        label='Name',
                        info='if it has one',
                        max_length=MAX_NAME,
                        max_lines=1,
                        scale=2,
                    )
                enroll_button = gr.Button('Enrol', variant='primary')
        slices = view()

        views = [label, picture, probabilities, nearest, slices]
        # That the file is an upload is checked all the same; Gradio's decoding has errors of its own.
        upload.input(
            partial(_show, model, detect),
            [upload, session],
            [upload, session, message, beside, faces, *views],
            preprocess=False,
            api_visibility='private',
        )
        faces.input(partial(_render, model), [session, faces], views, api_visibility='private')
        gr.on(
            [enroll_button.click, name.submit],
            _enroll,
            [session, faces, label, name],
            [session, message, nearest, name],
            api_visibility='private',
        )

        def forget(request: gr.Request):  # type: ignore[name-defined]  # Gradio reads it.
            page.state_holder.session_data.pop(request.session_hash, None)

        page.unload(forget)
    return page


def _show(model, detect, upload, session):
    """Values of the upload, session, message, column beside, faces and views for a new picture."""
    import gradio as gr

    if upload is None:  # Emptied, as by the change to the camera.
        return gr.skip()
    session = Session((session or model).gallery)
    try:
        session = read_faces(model, detect, _take(upload), session.gallery)
        is_error, note = False, WHOLE_PICTURE if detect is None else ''
        if not session.boxes:
            note = NO_FACE
    except UserError as error:
        is_error, note = True, f'This picture cannot be shown: {error}'
    captions = session.captions
    faces = gr.Radio(
        choices=[(caption, row) for row, caption in enumerate(captions)],
        value=0 if captions else None,
        visible=len(captions) > 1,
    )
    # The upload is emptied, for its file is gone.
    return (
        None,
        session,
        show_message(note, is_error=is_error),
        gr.Column(visible=bool(captions)),
        faces,
        *_render(model, session, 0),
    )


def _render(model, session, row):
    """Values of the label to enrol as, the picture, expressions, nearest faces and slices."""
    captions = session.captions
    chosen = row if len(captions) > 1 else None
    picture = ''
    if session.picture:
        marked = draw_boxes(session.picture, session.boxes, captions, chosen)
        picture = show_picture(marked, captions)
    if not captions:
        return None, picture, '', '', ''
    verdicts = slice_verdicts(model, session.gallery, session.predictions, row)
    return (
        session.predictions.names[row],
        picture,
        show_probabilities(session.predictions, row),
        show_nearest(nearest_faces(session, row)),
        show_verdicts(verdicts, model.settings.distance),
    )


def _enroll(session, row, label, name):
    """Values of the session, the message, the nearest faces and the name."""
    try:
        session = enroll(session, row, label or '', name or '')
        label = session.gallery.labels[-1]
        name = ''
        message = show_message(f'Enrolled as {label}, until you close this page.')
    except UserError as error:
        message = show_message(str(error), is_error=True)
    return session, message, show_nearest(nearest_faces(session, row)), name


@contextlib.contextmanager
def served(
    model: Model, host: str = '127.0.0.1', port: int = 7860, detect: Detect | None = None
) -> Iterator['Blocks']:
    """Serves the page as long as the context lasts.

    Args:
      model: as of `make_page`.
      host: address to listen on; 127.0.0.1 is reached from this machine alone.
      port: its port.
      detect: as of `make_page`.

    Raises:
      UserError: Gradio is not installed, or nobody can listen there.
    """
    gr = _import_gradio()
    from starlette.middleware import Middleware

    font, colours = ('system-ui', 'sans-serif'), {}
    for dark, info in (('', '600'), ('_dark', '300')):
        colours[f'block_info_text_color{dark}'] = f'*neutral_{info}'
        colours[f'button_primary_background_fill{dark}'] = '#0072b2'
        colours[f'button_primary_background_fill_hover{dark}'] = '#005a8e'
    theme = gr.themes.Default(primary_hue='sky', font=font, font_mono=('monospace',)).set(**colours)
    # A folder of its own for uploads, gone with the page.
    with tempfile.TemporaryDirectory(prefix='mtdml_jax_') as folder:
        os.environ['GRADIO_TEMP_DIR'] = folder
        page = make_page(model, detect)
        try:
            page.launch(
                server_name=host,
                server_port=port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                max_file_size=MAX_UPLOAD,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                mcp_server=False,
                ssr_mode=False,
                pwa=False,
                theme=theme,
                app_kwargs={'middleware': [Middleware(_hide_uploads)]},
            )
        except OSError as error:
            raise UserError(f'--host {host} --port {port}: it cannot be listened on') from error
        try:
            yield page
        finally:
            page.close()


def serve(
    model: Model, host: str = '127.0.0.1', port: int = 7860, detect: Detect | None = None
) -> None:
    """Serves the page until the process is interrupted or ended; arguments and errors of `served`."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with served(model, host, port, detect) as page:
        print(f'http://{host}:{port} (Ctrl-C ends it)', flush=True)
        page.block_thread()


def _hide_uploads(app):
    """Nobody fetches an upload, not even the browser that sent it: it is about to be deleted."""
    from starlette.responses import Response

    async def answer(scope, receive, send):
        is_upload = scope['type'] == 'http' and scope['path'].startswith('/gradio_api/file')
        await (Response(status_code=404) if is_upload else app)(scope, receive, send)

    return answer


def _import_gradio():
    # Before it is imported: it asks for the newest version of itself.
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
    try:
        import gradio
    except ImportError as error:
        raise UserError("the page needs Gradio: pip install 'mtdml_jax[demo]'") from error
    return gradio


def _take(upload) -> bytes:
    """Content of an uploaded file, which is deleted."""
    path = Path(upload['path'])
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError('it is gone; please give it once more') from error
    finally:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()
