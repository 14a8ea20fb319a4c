"""The file system that a store's address names: local disk, an object store, or one of fsspec's."""

from typing import TYPE_CHECKING

from factory.recipe import InputError, public

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

AT_ONCE = "allow_delayed_open"  # of pyarrow: a small object is one request instead of three
LONGEST_NAME, LONGEST_PATH = 255, 4000  # bytes, on the file systems there are


def file_system(address: str, shown: str) -> tuple["FileSystem", str]:
    """Return the file system of a URL, and the folder in it without a slash at the end.

    Args:
        address: the URL, with credentials if it has any.
        shown: the URL without them, for errors.

    Raises:
        InputError: the URL has an unknown scheme, or is none.
    """
    from pyarrow import ArrowInvalid, fs

    scheme = address.partition("://")[0]
    if scheme in ("s3", "gs", "gcs"):
        asked = address
        if scheme == "s3" and AT_ONCE not in address:
            asked += ("&" if "?" in address else "?") + f"{AT_ONCE}=true"
        try:
            filesystem, base = fs.FileSystem.from_uri(asked)
        except (ArrowInvalid, OSError) as error:
            reason = str(error).replace(asked, shown).replace(address, shown)
            raise InputError(f"store {shown}: {reason}") from None
        return filesystem, base.rstrip("/")
    import fsspec

    try:
        inner, base = fsspec.core.url_to_fs(address)
    except (ValueError, ImportError) as error:
        raise InputError(
            f"store {shown}: {error}; accepted: a path, s3://, gs://, fsspec"
        ) from None
    return fs.PyFileSystem(fs.FSSpecHandler(inner)), base.rstrip("/")


def check_names(address: str) -> None:
    """Refuse an address that no file system takes: names too long, or that are no UTF-8."""
    shown = address.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if shown != address or "\0" in address:
        raise InputError(f"store {public(shown)!r}: a name that is no UTF-8; accepted is UTF-8")
    if "://" in address and not address.startswith("file://"):
        return
    longest = max((len(part.encode()) for part in address.split("/")), default=0)
    if longest > LONGEST_NAME or len(address.encode()) > LONGEST_PATH:
        raise InputError(
            f"store {address[:60]}...: a name of {longest} bytes in a path of {len(address)}; "
            f"accepted are {LONGEST_NAME} and {LONGEST_PATH}"
        )
