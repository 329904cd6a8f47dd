import time
import zlib

import numpy as np
import pytest

from xmsd_jax.data.events import EventFrames, Events
from xmsd_jax.data.pictures import PictureError, decode_png, encode_event_frame
from xmsd_jax.report.png import encode_png


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (48, 64), (7, 4)])
def test_a_picture_comes_back_as_it_was(height, width):
    image = noise(height, width)
    assert np.array_equal(decode_png(encode_png(image)), image)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (48, 64), (7, 4), (2, 6), (2, 7)])
def test_an_event_frame_comes_back_as_it_was(height, width):
    colours = np.array([[255, 0, 0], [0, 0, 255], [255, 255, 255]], np.uint8)
    image = colours[np.random.default_rng(1).integers(0, 3, (height, width))]
    content = encode_event_frame(image)
    assert np.array_equal(decode_png(content), image)
    assert content == encode_event_frame(image.copy())
    assert content[24:26] == bytes((2, 3))  # 2 bits a pixel, with a palette


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 0), (0, 255, 255), (0, 255, 0), (254, 0, 0), (255, 1, 255)])
def test_another_colour_is_no_event_frame(colour):
    image = np.full((2, 3, 3), 255, np.uint8)
    image[1, 2] = colour
    with pytest.raises(ValueError, match="red, blue and white only"):
        encode_event_frame(image)


def test_each_truncation_and_each_changed_byte_is_refused():
    content = encode_png(noise(4, 5))
    for length in range(len(content)):
        with pytest.raises(PictureError):
            decode_png(content[:length])
    for place in range(len(content)):
        with pytest.raises(PictureError):
            decode_png(content[:place] + bytes((content[place] ^ 1,)) + content[place + 1 :])


def test_whole_chunks_of_nonsense_are_refused():
    content = encode_png(noise(4, 5))
    start = content.index(b"IDAT")
    length = int.from_bytes(content[start - 4 : start], "big")
    body = b"IDAT" + b"\xff" * length
    broken = content[:start] + body + zlib.crc32(body).to_bytes(4, "big") + content[start + 8 + length :]
    with pytest.raises(PictureError, match="not a readable PNG"):
        decode_png(broken)


def test_scaling_keeps_a_plain_picture_plain():
    image = np.full((40, 60, 3), (10, 120, 240), np.uint8)
    small = decode_png(encode_png(image), size=(20, 30))
    assert small.shape == (20, 30, 3)
    assert abs(small.astype(int) - image[0, 0]).max() <= 2


def test_an_event_frame_of_the_sensors_size_is_written_fast():
    rng = np.random.default_rng(2)
    events = Events(
        x=rng.integers(0, 640, 200_000).astype(np.uint16), y=rng.integers(0, 480, 200_000).astype(np.uint16),
        p=rng.integers(0, 2, 200_000).astype(np.uint8), t=np.arange(200_000), height=480, width=640,
    )  # fmt: skip
    (frame,) = EventFrames(n=1).frames(events)
    start = time.process_time()
    content = encode_event_frame(frame)
    assert time.process_time() - start < 0.2
    assert len(content) < 640 * 480 / 4 * 1.05
