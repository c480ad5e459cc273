"""TFDS builder of MMI, from its videos or from extracted frames."""

import logging
import re
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

from mtdml_jax.data.image_files import FaceBuilder
from mtdml_jax.host.errors import UserError
from mtdml_jax.images.folders import Face, find_patterns, image_files, visible_folders
from mtdml_jax.images.videos import open_video

logger = logging.getLogger(__name__)

NAMES = ('anger', 'disgust', 'fear', 'happy', 'sadness', 'surprise')
CODES = {str(code): name for code, name in enumerate(NAMES, start=1)}
FRONTAL = {'0', '2'}


class Mmi(FaceBuilder):
    """MMI: posed expressions, each a video that goes from neutral to the apex and back to neutral.

    The builder reads folders `Sessions/<id>/` that contain `session.xml`, `<sid>.xml` (S053-001.xml) and
    `<sid>.avi`. Instead of the avi, a session may contain its frames as images, in its own folder or in
    one subfolder. The builder takes the config.data.num_frames frames in the middle of each video. It
    leaves out sessions without an emotion from 1 to 6 (such as those that show only action units) and
    sessions without a frontal view. All faces are in the split train. Papers use 10 folds by subject
    (config.data.folds=10).

    We know two facts about the xml files. `<sid>.xml` has `Metatag Name="Emotion" Value="1"`.
    `session.xml` has the `view` of a `track`: 0 is frontal, 2 is frontal and profile side by side. We
    assume that both can be in any xml file of the session, that the case of their names varies, and that
    the subject is the first part of the sid (S053) or, without a sid, the `id` of a `subject`.

    Frames of an avi are used whole, as they were recorded. Crops of the faces are better training data.

    References:
      Pantic, Valstar, Rademaker, Maat, "Web-based database for facial expression analysis", ICME 2005.
    """

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        'Ask the authors for MMI, unpack Sessions/ into a folder, and name the folder in '
        'config.data.dir.'
    )
    SOURCES = ('Sessions',)
    CLASS_NAMES = {'default': NAMES}

    def find_faces(self, folder: Path) -> dict[str, list[Face]]:
        """See `FaceBuilder`."""
        config = self.builder_config
        faces, short, videos = [], [], []
        for session in visible_folders(folder / 'Sessions'):
            found = _read_session(session)
            if found is None:
                continue
            label, subject, video = found
            images = _find_images(session)
            if images:
                frames = _take_middle([(path, path) for path in images], config.num_frames)
            else:
                videos.append(video)
                frames = _decode_middle(video, config)
            if not frames:
                short.append(session.name)
            faces += [
                Face(path.relative_to(folder).as_posix(), label, image, subject)
                for path, image in frames
            ]
        if not faces:
            raise UserError(
                f'{folder / "Sessions"}: expected sessions with an emotion from 1 to 6 and a view of 0 '
                f'or 2, found none of {config.num_frames} frames'
            )
        _warn_about(short, videos, config.num_frames)
        return {'train': faces}


def _warn_about(short, videos, num_frames):
    """Logs the names of sessions with too few frames, and that frames of videos are not cropped."""
    if short:
        logger.warning(
            'mmi: %d sequences are left out because they have fewer than %d frames: %s',
            len(short),
            num_frames,
            ', '.join(short[:5]),
        )
    if videos:
        logger.warning(
            'mmi: whole frames of %d videos are used. Some are rotated by 90 degrees, and some show a '
            'profile beside the face. Crops of the faces are better: extract the frames (%s), crop the '
            'faces and store the crops instead of the videos',
            len(videos),
            _describe_extraction(videos[0]),
        )


def _read_session(session):
    """Returns (class, subject, video) of a session; None if it has no expression or no frontal view."""
    files, elements = find_patterns(session, ['*.xml']), defaultdict(list)
    for path in files:
        try:
            root = ElementTree.parse(path).getroot()
        except (ElementTree.ParseError, LookupError, OSError, ValueError) as error:
            raise UserError(f'{path}: expected XML, found {error}') from error
        for element in root.iter():
            attributes = {name.lower(): value.strip() for name, value in element.attrib.items()}
            elements[element.tag.lower()].append(attributes)
    tags = [tag for tag in elements['metatag'] if tag.get('name', '').lower() == 'emotion']
    codes = {tag.get('value', '') for tag in tags} & CODES.keys()
    if not codes or FRONTAL.isdisjoint(track.get('view') for track in elements['track']):
        return None
    if len(codes) > 1:
        raise UserError(f'{session}: expected one emotion, found {", ".join(sorted(codes))}')
    videos = find_patterns(session, ['*.avi'])
    sid = next((x.stem for x in (*videos, *files) if re.fullmatch(r'S\d+-\d+', x.stem)), '')
    subjects = [sid.partition('-')[0], *(x.get('id') for x in elements['subject'])]
    subject = next(filter(None, subjects), None)
    if subject is None:
        raise UserError(f'{session}: expected a file such as S053-001.xml, or a subject with an id')
    return CODES[codes.pop()], subject, videos[0] if videos else session / f'{sid or "*"}.avi'


def _find_images(session):
    """Returns the extracted frames of a session in order; [] if there are none."""
    folders = [session, *visible_folders(session)]
    found = [images for images in map(image_files, folders) if images]
    if len(found) > 1:
        names = ', '.join(str(images[0].parent) for images in found)
        raise UserError(f'{session}: expected the frames in one folder, found some in {names}')
    return found[0] if found else []


def _decode_middle(video, config):
    """Returns (name, pixels) of the middle frames of a video; (video, video) if it cannot be decoded."""
    if not config.in_memory:
        raise UserError(
            f'config.data.in_memory=False: expected image files, found {video}; extract its frames '
            f'({_describe_extraction(video)})'
        )
    try:
        import av
    except ImportError as error:
        raise UserError(
            f'{video}: reading videos needs PyAV: pip install av; or extract the frames '
            f'({_describe_extraction(video)})'
        ) from error
    try:
        with open_video(video) as container:
            frames = list(enumerate(container.decode(video=0)))
    except (OSError, av.FFmpegError):
        return [(video, video)]
    return [
        (video.with_name(f'{video.name}:{number}'), frame.to_ndarray(format='rgb24'))
        for number, frame in _take_middle(frames, config.num_frames)
    ]


def _take_middle(frames, count):
    """Returns the `count` frames in the middle of a sequence; [] if it has fewer."""
    start = (len(frames) - count) // 2
    return frames[start : start + count] if start >= 0 else []


def _describe_extraction(video):
    return f'ffmpeg -i {video.name} %04d.png in {video.parent}'
