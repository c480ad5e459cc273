"""The demo page. It shows the faces in a picture, their expressions, and the verdict of each slice.

The page needs Gradio, which is imported when a page is made. The page deletes an upload as soon as it
has read the file. Everything that a visitor sees and enrols stays in memory, separately for each
visitor, until the visitor closes the tab.
"""

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
    Models,
    Session,
    choose_model,
    describe_models,
    enroll,
    nearest_faces,
    read_faces,
    start_session,
)
from mtdml_jax.host.errors import UserError
from mtdml_jax.inference.drawing import draw_boxes
from mtdml_jax.inference.verdicts import slice_verdicts

if TYPE_CHECKING:
    from gradio import Blocks

MAX_UPLOAD = '10mb'
# An upload that no handler reads, for example because the tab was closed, is deleted after this time.
LEFT_SECONDS = 60
NO_FACE = 'No face was found in this picture.'
WHOLE_PICTURE = 'Faces are not searched for: the whole picture is taken as the face.'


def make_page(models: Models, detect: Detect | None = None) -> 'Blocks':
    """Makes the page, which `serve` or another server can serve.

    Args:
      models: name -> model. Visitors choose one of several; at first it is the first one. Faces that
        visitors enrol are not added to a model.
      detect: finds faces in an upright picture of mode L or RGB. It returns left, top, width and height
        of each face in pixels, like `faces.find_faces`. None takes the whole picture as the face.

    Raises:
      UserError: Gradio is not installed.
    """
    gr = _import_gradio()
    with gr.Blocks(
        title='Facial expressions',
        analytics_enabled=False,
        delete_cache=(LEFT_SECONDS, LEFT_SECONDS),
    ) as page:
        parts = _lay_out(gr, models)
        _connect(gr, models, detect, parts)

        def forget(request: gr.Request):  # type: ignore[name-defined]  # Gradio reads the annotation.
            page.state_holder.session_data.pop(request.session_hash, None)

        page.unload(forget)
    return page


class _Parts(NamedTuple):
    """The components of the page that handlers read or write."""

    session: Any
    header: Any
    model: Any
    upload: Any
    message: Any
    picture: Any
    column: Any
    faces: Any
    probabilities: Any
    nearest: Any
    label: Any
    name: Any
    enroll_button: Any
    slices: Any

    @property
    def views(self) -> list[Any]:
        """The components whose values `_render` returns."""
        return [self.label, self.picture, self.probabilities, self.nearest, self.slices]


def _lay_out(gr, models) -> _Parts:
    """Adds the components to the page that is being made."""
    view = partial(gr.HTML, apply_default_css=False, js_on_load=None)
    first, *others = models
    header = view(show_header(models[first].settings))
    model = gr.Radio(
        describe_models(models),
        value=first,
        label='Model',
        info='It knows the faces that you enrol while it is chosen.',
        visible=bool(others),
    )
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
        with gr.Column(scale=5, min_width=320, visible=False) as column:
            faces = gr.Radio(label='Face, the largest first', visible=False)
            probabilities, nearest = view(), view()
            label, name, enroll_button = _lay_out_form(gr, models[first].class_names)
    return _Parts(
        session=session,
        header=header,
        model=model,
        upload=upload,
        message=message,
        picture=picture,
        column=column,
        faces=faces,
        probabilities=probabilities,
        nearest=nearest,
        label=label,
        name=name,
        enroll_button=enroll_button,
        slices=view(),
    )


def _lay_out_form(gr, class_names):
    """Adds the form that enrols a face; returns the label, the name and the button."""
    with gr.Row(equal_height=True):
        label = gr.Dropdown(
            list(class_names),
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
    return label, name, gr.Button('Enrol', variant='primary')


def _connect(gr, models, detect, parts):
    """Connects the components with their handlers."""
    session, views = parts.session, parts.views
    # Handlers that change a session wait for one another, so that none undoes what another did.
    changes = {'concurrency_id': 'changes', 'api_visibility': 'private'}
    # Gradio's own decoding would raise its own errors. Without it Gradio still checks that the file is
    # an upload.
    parts.upload.input(
        partial(_show, models, detect),
        [parts.upload, session],
        [parts.upload, session, parts.message, parts.column, parts.faces, *views],
        preprocess=False,
        **changes,
    )
    parts.model.input(
        partial(_choose, models, detect),
        [session, parts.model, parts.faces],
        [parts.header, session, parts.message, parts.column, parts.faces, *views],
        **changes,
    )
    parts.faces.input(
        partial(_render, models), [session, parts.faces], views, api_visibility='private'
    )
    gr.on(
        [parts.enroll_button.click, parts.name.submit],
        _enroll,
        [session, parts.faces, parts.label, parts.name],
        [session, parts.message, parts.nearest, parts.name],
        **changes,
    )


def _show(models, detect, upload, session):
    """Returns the upload, session, message, column, faces and views for a new picture."""
    import gradio as gr

    if upload is None:  # The upload was emptied, for example by a change to the camera.
        return gr.skip()
    session, error = session or start_session(models), None
    try:
        session = read_faces(models, detect, _take(upload), session)
    except UserError as found:
        session = Session(session.chosen, session.galleries)
        error = f'This picture cannot be shown: {found}'
    # The upload is emptied, because its file was deleted.
    return None, *_present(models, detect, session, 0, error)


def _choose(models, detect, session, name, row):
    """Returns the header, session, message, column, faces and views for another model."""
    session = choose_model(models, session or start_session(models), name)
    return show_header(models[name].settings), *_present(models, detect, session, row or 0)


def _present(models, detect, session, row, error=None):
    """Returns the session, message, column, faces and views, with a face chosen."""
    import gradio as gr

    captions, note = session.captions, ''
    if session.picture and not captions:
        note = NO_FACE
    elif session.picture and detect is None:
        note = WHOLE_PICTURE
    faces = gr.Radio(
        choices=[(caption, row) for row, caption in enumerate(captions)],
        value=row if captions else None,
        visible=len(captions) > 1,
    )
    return (
        session,
        show_message(error or note, is_error=error is not None),
        gr.Column(visible=bool(captions)),
        faces,
        *_render(models, session, row),
    )


def _render(models, session, row):
    """Returns the label for enrolment, the picture, expressions, nearest faces and slices."""
    import gradio as gr

    model, captions = models[session.chosen], session.captions
    chosen = row if len(captions) > 1 else None
    picture = ''
    if session.picture:
        marked = draw_boxes(session.picture, session.boxes, captions, chosen)
        picture = show_picture(marked, captions)
    names = list(model.class_names)
    if not captions:
        return gr.Dropdown(names, value=None), picture, '', '', ''
    verdicts = slice_verdicts(model, session.gallery, session.predictions, row)
    return (
        gr.Dropdown(names, value=session.predictions.names[row]),
        picture,
        show_probabilities(session.predictions, row),
        show_nearest(nearest_faces(session, row)),
        show_verdicts(verdicts, model.settings.distance),
    )


def _enroll(session, row, label, name):
    """Enrols a face; returns the session, the message, the nearest faces and the name."""
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
    models: Models, host: str = '127.0.0.1', port: int = 7860, detect: Detect | None = None
) -> Iterator['Blocks']:
    """Serves the page until the context ends.

    Args:
      models: see `make_page`.
      host: address to listen on; only this machine can reach 127.0.0.1.
      port: port to listen on.
      detect: see `make_page`.

    Raises:
      UserError: Gradio is not installed, or the address and port cannot be listened on.
    """
    gr = _import_gradio()
    from starlette.middleware import Middleware

    # Uploads have a folder of their own, which is deleted with the page.
    with tempfile.TemporaryDirectory(prefix='mtdml_jax_') as folder:
        os.environ['GRADIO_TEMP_DIR'] = folder
        page = make_page(models, detect)
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
                theme=_make_theme(gr),
                app_kwargs={'middleware': [Middleware(_hide_uploads)]},
            )
        except OSError as error:
            raise UserError(f'--host {host} --port {port}: it cannot be listened on') from error
        try:
            yield page
        finally:
            page.close()


def _make_theme(gr):
    font, colours = ('system-ui', 'sans-serif'), {}
    for dark, info in (('', '600'), ('_dark', '300')):
        colours[f'block_info_text_color{dark}'] = f'*neutral_{info}'
        colours[f'button_primary_background_fill{dark}'] = '#0072b2'
        colours[f'button_primary_background_fill_hover{dark}'] = '#005a8e'
    theme = gr.themes.Default(primary_hue='sky', font=font, font_mono=('monospace',))
    return theme.set(**colours)


def serve(
    models: Models, host: str = '127.0.0.1', port: int = 7860, detect: Detect | None = None
) -> None:
    """Serves the page until the process is interrupted or terminated; see `served`."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with served(models, host, port, detect) as page:
        print(f'http://{host}:{port} (Ctrl-C ends it)', flush=True)
        page.block_thread()


def _hide_uploads(app):
    """Wraps the app so that nobody can fetch an upload, which is deleted soon, from the server."""
    from starlette.responses import Response

    async def answer(scope, receive, send):
        is_upload = scope['type'] == 'http' and scope['path'].startswith('/gradio_api/file')
        await (Response(status_code=404) if is_upload else app)(scope, receive, send)

    return answer


def _import_gradio():
    # This is set before the import, because Gradio looks up its newest version when it is imported.
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
    try:
        import gradio
    except ImportError as error:
        raise UserError("the page needs Gradio: pip install 'mtdml_jax[demo]'") from error
    return gradio


def _take(upload) -> bytes:
    """Returns the content of an uploaded file, and deletes the file."""
    path = Path(upload['path'])
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError('it is gone; please upload it again') from error
    finally:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()
