"""Where a run's pictures, curves and pages go: the Trainer's loggers, or files."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, TypeGuard

import lightning.pytorch as pl
import msgspec
import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from lit_attr.errors import UserError
from lit_attr.records.files import write_bytes
from lit_attr.records.folder import RESUME_HINT, RunFolder

# A picture or page is identified by its tag and step, in files and in TensorBoard.
Shown = tuple[str, int]

_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"


class _Events(msgspec.Struct):
    """What `shown.json` says of an event file: how long it was, and the pictures and pages in it."""

    bytes: int
    shown: list[Shown]


_LISTED = msgspec.json.Decoder(dict[str, _Events])


def _to_tensorboard(logger: TensorBoardLogger, tag: str, image: Image.Image, step: int) -> None:
    logger.experiment.add_image(tag, np.asarray(image), global_step=step, dataformats="HWC")


def _to_wandb(logger: WandbLogger, tag: str, image: Image.Image, step: int) -> None:
    # Its steps count all that is logged, and it refuses one that is not larger than the last.
    logger.log_image(tag, [image])


def _to_mlflow(logger: MLFlowLogger, tag: str, image: Image.Image, step: int) -> None:
    name = f"{tag}.png" if step == 0 else f"{tag}-{step}.png"
    logger.experiment.log_image(logger.run_id, image, artifact_file=name)


# How each kind of logger takes a picture. Another kind needs a function like those above.
IMAGE_LOGGERS: dict[type[Logger], Callable[[Any, str, Image.Image, int], None]] = {
    TensorBoardLogger: _to_tensorboard,
    WandbLogger: _to_wandb,
    MLFlowLogger: _to_mlflow,
}


def is_tensorboard(logger: object) -> TypeGuard[TensorBoardLogger]:
    """Whether a logger is a `TensorBoardLogger`, of `lightning.pytorch` or of `pytorch_lightning`."""
    # The two packages have the same classes twice; nobody has a logger of one that is not imported.
    other = sys.modules.get("pytorch_lightning.loggers")
    return isinstance(logger, TensorBoardLogger if other is None else (TensorBoardLogger, other.TensorBoardLogger))


def _show_function(logger: Logger) -> Callable[[Any, str, Image.Image, int], None] | None:
    for kind, show in IMAGE_LOGGERS.items():
        if isinstance(logger, kind) or (kind is TensorBoardLogger and is_tensorboard(logger)):
            return show
    return None


def takes_images(trainer: pl.Trainer) -> bool:
    """Whether one of the Trainer's loggers takes pictures."""
    return any(_show_function(logger) is not None for logger in trainer.loggers)


def show_image(trainer: pl.Trainer, tag: str, image: Image.Image, step: int) -> None:
    """Sends a picture to each of the Trainer's loggers that takes pictures."""
    for logger in trainer.loggers:
        show = _show_function(logger)
        if show is not None:
            show(logger, tag, image, step)


def log_image(trainer: pl.Trainer, figures: Path, tag: str, image: Image.Image, step: int = 0) -> None:
    """Sends a picture to each logger that takes pictures; where none does, writes it as a PNG file.

    Args:
        trainer: The Trainer with the loggers.
        figures: Folder for files.
        tag: Groups and a name, separated by slashes.
        image: The picture.
        step: Tells pictures of the same tag apart.

    Raises:
        UserError: The picture cannot be written.
    """
    places = (logger.log_dir for logger in trainer.loggers if is_tensorboard(logger))
    try:
        if takes_images(trainer):
            show_image(trainer, tag, image, step)
        else:
            path = figures / f"{tag}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            content = BytesIO()
            image.save(content, "PNG")
            write_bytes(path, content.getvalue())
    except OSError as error:
        # From TensorBoard, of an earlier picture: it writes in a thread of its own.
        raise _unwritable(next(places, None) or figures, error) from error


def log_curves(loggers: Sequence[Logger], curves: Iterable[tuple[int, Mapping[str, float]]]) -> None:
    """Sends the points of curves, each a step with its values, to loggers."""
    for step, values in curves:
        for logger in loggers:
            logger.log_metrics(dict(values), step=step)


def shown_images(trainer: pl.Trainer, folder: RunFolder) -> set[Shown]:
    """The pictures and pages of a run that are already where this Trainer's pictures go.

    Pictures in whole files are found there; a file has no step and counts as step 0. What is in an event file is
    known from the run's own list, as long as that event file is still there and has not become shorter.

    Args:
        trainer: The Trainer with the loggers.
        folder: The run's folder.
    """
    if not takes_images(trainer):
        files = (path for path in folder.figures.rglob("*.png") if _is_whole_png(path))
        return {(path.relative_to(folder.figures).with_suffix("").as_posix(), 0) for path in files}
    return {
        (tag, step)
        for name, events in _read_shown(folder).items()
        if (path := folder.path / name).is_file() and path.stat().st_size >= events.bytes
        for tag, step in events.shown
    }


def record_shown(trainer: pl.Trainer, folder: RunFolder, shown: Collection[Shown]) -> None:
    """Lists the pictures and pages that this run has sent to TensorBoard, once they are written.

    They are listed by event file, since the folder of a logger may have those of several runs.

    Args:
        trainer: The Trainer with the loggers.
        folder: The run's folder.
        shown: The pictures and pages.

    Raises:
        UserError: A logger cannot write.
    """
    if not shown:
        return
    listed = _read_shown(folder)
    for logger in trainer.loggers:
        if is_tensorboard(logger):
            try:
                events = _flushed(logger)
            except OSError as error:
                raise _unwritable(logger.log_dir, error) from error
            if events is not None:
                # Relative, so that a run's folder can be moved together with its event files.
                name = os.path.relpath(events, folder.path)
                listed[name] = _Events(events.stat().st_size, sorted(shown))
    folder.write_shown(listed)


def _flushed(logger: TensorBoardLogger) -> Path | None:
    """Has a logger write all that it was sent, and returns its event file; None where that is on no local disk.

    Raises:
        OSError: It could not be written.
    """
    # TensorBoard's writing thread may report the failure of the last write only to the next call.
    for _ in range(2):
        logger.experiment.flush()
    files = [*Path(logger.log_dir).glob("events.out.tfevents.*")]
    if not files:
        return None
    events = max(files, key=lambda path: path.stat().st_mtime_ns)
    with events.open("rb") as stream:
        os.fsync(stream.fileno())
        size, end = events.stat().st_size, 0
        # Each record is its length (8 bytes), a checksum of that (4), itself, and a checksum (4).
        while end < size:
            stream.seek(end)
            head = stream.read(8)
            end += 16 + (struct.unpack("<Q", head)[0] if len(head) == 8 else size)
    if end != size:
        raise OSError("a record is not whole")
    return events


def _is_whole_png(path: Path) -> bool:
    with path.open("rb") as stream:
        if stream.read(len(_PNG_START)) != _PNG_START:
            return False
        stream.seek(0, os.SEEK_END)
        stream.seek(max(0, stream.tell() - len(_PNG_END)))
        return stream.read() == _PNG_END


def _read_shown(folder: RunFolder) -> dict[str, _Events]:
    try:
        return _LISTED.decode(folder.shown.read_bytes())
    except (OSError, msgspec.DecodeError):
        # Pictures that no list has are shown once more.
        return {}


def _unwritable(place: str | Path, error: OSError) -> UserError:
    return UserError(f"trainer.logger: {place} cannot be written to ({error.strerror or error}); {RESUME_HINT}")
