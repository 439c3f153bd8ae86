"""Finding the files of a raw dataset below its folder; a link that leads out of the folder is refused."""

from pathlib import Path

from voxray.config.errors import InputError
from voxray.data.formats.rows import MAX_SHOWN


def find_files(source: Path, pattern: str) -> list[Path]:
    """Return the files below `source` whose name fits the glob `pattern`, by path; none is no error.

    Raises InputError when `source` is no folder, and for a pattern or a file that leads out of it.
    """
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise InputError(f"'{pattern}' leads out of '{source}'; write a pattern of names below it")
    if not source.is_dir():
        raise InputError(f"'{source}' is no folder; name the folder that holds the raw files")
    root = source.resolve()
    found = sorted(path for path in source.rglob(pattern) if path.is_file() or path.is_symlink())
    if outside := [path for path in found if not path.resolve().is_relative_to(root)]:
        raise InputError(
            *(
                f"'{path}' is a link that leads out of the folder and is not followed; copy the file into it"
                for path in outside[:MAX_SHOWN]
            )
        )
    return found


def the_file(source: Path, pattern: str, what: str, mend: str) -> Path:
    """Return the one file below `source` that `pattern` names.

    Raises InputError, saying `what` is wanted and the `mend`, when there is none or more than one.
    """
    found = find_files(source, pattern)
    if not found:
        raise InputError(f"'{source}' holds no {what} ({pattern}); {mend}")
    if len(found) > 1:
        shown = ", ".join(str(path.relative_to(source)) for path in found[:MAX_SHOWN])
        raise InputError(f"'{source}' holds more than one {what}: {shown}; {mend}")
    return found[0]
