"""Images of a request: data URLs, files of one folder, and hosts that were allowed; bounded in bytes and pixels."""

import base64
import binascii
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

import httpx2
from PIL import Image

from pipelines.data.pictures import BROKEN, Picture, as_shown, drawn
from pipelines.serving.refusals import RefusalError
from pipelines.settings import ServeSettings

MIB, MEGAPIXEL = 2**20, 10**6
PARAMETER = "messages.content.image_url"


class Images:
    """Reads the images of requests.

    Args:
        settings: what may be read.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._client = httpx2.AsyncClient(follow_redirects=False, timeout=settings.timeout)

    async def close(self) -> None:
        """Let connections go."""
        await self._client.aclose()

    async def read(self, url: str) -> bytes:
        """The bytes of an image.

        Raises:
            RefusalError: it may not be read, cannot be, or is too large.
        """
        scheme = urlsplit(url[:100]).scheme
        if scheme == "data":
            return self._inline(url)
        if scheme == "file":
            return self._file(url)
        if scheme in ("http", "https"):
            return await self._fetched(url)
        raise _refused("An image's URL must begin with data:, file:, http: or https:.")

    def decoded(self, data: bytes) -> Picture:
        """A picture as a viewer shows it.

        Raises:
            RefusalError: it is none, or has too many pixels.
        """
        try:
            with Image.open(BytesIO(data)) as image:
                width, height = image.size
                if width * height > self._settings.image_megapixels * MEGAPIXEL:
                    raise self._too_wide()
                return drawn(as_shown(image))
        except Image.DecompressionBombError as error:  # more than Pillow itself opens
            raise self._too_wide() from error
        except BROKEN as error:
            raise _refused("An image cannot be read: send it again, as JPEG, PNG or WebP.") from error

    def _too_wide(self) -> RefusalError:
        allowed = f"{self._settings.image_megapixels:g} million"
        return _refused(f"An image has more than {allowed} pixels: send a smaller one.", 413)

    def _check_size(self, size: float) -> None:
        if size > self._settings.image_mib * MIB:
            raise _refused(f"An image has more than {self._settings.image_mib:g} MiB: send a smaller one.", 413)

    def _inline(self, url: str) -> bytes:
        """The bytes of a data URL."""
        head, comma, body = url.partition(",")
        if not comma:
            raise _refused("A data: URL has no comma, after which its data begins.")
        self._check_size(len(body) / 4)  # before it is copied
        try:
            data = base64.b64decode(body, validate=True) if head.endswith(";base64") else unquote_to_bytes(body)
        except binascii.Error as error:
            raise _refused("The data: URL of an image is not base64.") from error
        self._check_size(len(data))
        return data

    def _file(self, url: str) -> bytes:
        folder = self._settings.image_folder
        if folder is None:
            raise _refused("This endpoint reads no files: send images as data: URLs.", 403)
        root = Path(folder).resolve()
        path = Path(url2pathname(urlsplit(url).path)).resolve()
        if not path.is_relative_to(root):
            raise _refused("That file is not in the folder that this endpoint reads images from.", 403)
        try:
            self._check_size(path.stat().st_size)
            return path.read_bytes()
        except OSError as error:
            raise _refused(f"The image file cannot be read ({error.strerror}).", 404) from error

    async def _fetched(self, url: str) -> bytes:
        host = urlsplit(url).hostname
        if host not in self._settings.image_hosts:
            raise _refused(
                f"This endpoint fetches no images from {host}: send them as data: URLs, or have serve.image_hosts name "
                "that host.",
                403,
            )
        data = bytearray()
        try:
            async with self._client.stream("GET", url) as response:
                if response.status_code != 200:
                    raise _refused(f"{host} answers {response.status_code} to the request for the image.")
                async for chunk in response.aiter_bytes():
                    data += chunk
                    self._check_size(len(data))
        except httpx2.HTTPError as error:
            raise _refused(f"The image cannot be fetched from {host} ({type(error).__name__}).") from error
        return bytes(data)


def _refused(sentence: str, status: int = 400) -> RefusalError:
    return RefusalError(status, sentence, PARAMETER)
