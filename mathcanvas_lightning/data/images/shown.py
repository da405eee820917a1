"""Images on pages and in notebooks, as the model gets them."""

from PIL import Image

from mathcanvas_lightning.common.html_page import Notice, PagePicture
from mathcanvas_lightning.data.images.decode import ImageError, ImageLimits, check_image
from mathcanvas_lightning.data.images.pixels import encode_png, image_for_page


def shown_image(data: bytes, name: str | None) -> PagePicture | Notice:
    """Makes a picture of an encoded image.

    Args:
        data: The encoded file.
        name: Its name; None without one.

    Returns:
        The picture with its size; a notice if it can't be shown.
    """
    try:
        info = check_image(data, ImageLimits(), depth="header")
        shown, kind = image_for_page(data, ImageLimits())
    except ImageError as error:
        return Notice(f"{name}: {error}")
    caption = f"{name or 'image'}, {info.width_px}x{info.height_px}"
    if info.orientation != 1:
        caption += f", with the EXIF orientation {info.orientation}, which is ignored"
    return PagePicture(data=shown, format=kind, caption=caption)


def shown_drawing(image: Image.Image) -> PagePicture:
    """Makes a picture of a drawing."""
    caption = f"drawing, {image.width}x{image.height}"
    return PagePicture(data=encode_png(image), format="PNG", caption=caption)
